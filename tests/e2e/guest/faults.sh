# Guest script of linux_faults: logs in by CHAP, both ways, with digests; writes to a file system while the host cuts
# connections and starts the target anew, until the disk has grown; looks at what was written; takes two paths at once.
# Environment: PORT, VOLUME, SECRET, OWN_SECRET, FINDER_SECRET, GROWN_SECTORS.
set -e
portal=10.0.2.2:$PORT
mkdir -p /etc/iscsi /var/lib/iscsi /run/lock/iscsi /mnt/v /run/sums
echo "InitiatorName=iqn.2003-01.org.linux-iscsi.lab:initiator" > /etc/iscsi/initiatorname.iscsi
cat > /etc/iscsi/iscsid.conf <<EOF
node.startup = manual
node.session.timeo.replacement_timeout = 180
node.conn[0].timeo.login_timeout = 15
node.conn[0].timeo.noop_out_interval = 5
node.conn[0].timeo.noop_out_timeout = 5
node.conn[0].iscsi.HeaderDigest = CRC32C
node.conn[0].iscsi.DataDigest = CRC32C
node.session.iscsi.InitialR2T = No
node.session.iscsi.ImmediateData = Yes
discovery.sendtargets.auth.authmethod = CHAP
discovery.sendtargets.auth.username = finder
discovery.sendtargets.auth.password = $FINDER_SECRET
node.session.auth.authmethod = CHAP
node.session.auth.username = host-7
node.session.auth.password = $SECRET
node.session.auth.username_in = gossamer
node.session.auth.password_in = $OWN_SECRET
EOF
iscsid > /run/iscsid.log 2>&1

node() { iscsiadm -m node -T $VOLUME -p $portal "$@"; }
set_to() { node -o update -n node.session.auth.$1 -v "$2" > /dev/null; }
refused() { # a login that must fail
    if node --login > /run/login.log 2>&1; then echo "a login with $1 was let in"; exit 1; fi
}

iscsiadm -m discovery -t sendtargets -p $portal | grep -q "$VOLUME" || { echo "discovery does not show $VOLUME"; exit 1; }
set_to password "not this one at all"
refused "a wrong secret"
set_to password "$SECRET"
set_to password_in "not this one at all"
refused "a target that does not prove itself"
set_to password_in "$OWN_SECRET"
echo "REFUSED what was to be refused"
node --login > /run/login.log 2>&1 || { cat /run/login.log; exit 1; }
for digest in /sys/class/iscsi_connection/*/header_digest /sys/class/iscsi_connection/*/data_digest; do
    [ "$(cat $digest)" = 1 ] || { echo "$digest is $(cat $digest)"; exit 1; }
done

disks() { ls -d /sys/class/iscsi_session/*/device/target*/*:0/block/* 2>/dev/null | sed 's,.*/,,'; }
wait_for_disks() {
    n=0
    until [ "$(disks | wc -l)" = $1 ]; do
        n=$((n + 1))
        [ $n -lt 200 ] || { echo "no $1 disks came: $(disks)"; exit 1; }
        sleep 0.1
    done
}
wait_for_disks 1
dev=$(disks)
mkfs.ext4 -q /dev/$dev 2>&1
mount -t ext4 /dev/$dev /mnt/v

round=0
while [ "$(cat /sys/block/$dev/size)" != $GROWN_SECTORS ]; do
    round=$((round + 1))
    file=f$((round % 6))
    dd if=/dev/urandom of=/run/source bs=64k count=24 2> /dev/null
    cp /run/source /mnt/v/$file
    sync
    md5sum < /run/source > /run/sums/$file
    iscsiadm -m session -R > /dev/null 2>&1 || true
    echo "ROUND $round"
done
echo "SIZE SEEN $(cat /sys/block/$dev/size)"
umount /mnt/v
fsck.ext4 -fn /dev/$dev 2>&1
mount -t ext4 /dev/$dev /mnt/v
for file in $(ls /run/sums); do
    md5sum < /mnt/v/$file | cmp -s - /run/sums/$file || { echo "$file is not what was written"; exit 1; }
done
umount /mnt/v
if dmesg | grep -E "I/O error|EXT4-fs (error|warning)|Buffer I/O|critical"; then echo "there were errors"; exit 1; fi

# A second session to the same target: two paths to one disk.
sid=$(iscsiadm -m session | sed 's/.*\[\([0-9]*\)\].*/\1/')
iscsiadm -m session -r $sid --op new > /run/login.log 2>&1 || { cat /run/login.log; exit 1; }
wait_for_disks 2
set -- $(disks)
cmp /sys/block/$1/device/vpd_pg83 /sys/block/$2/device/vpd_pg83
numbers() { cat /sys/block/$1/dev; }
dmsetup create paths --noudevsync --noudevrules --table \
    "0 $GROWN_SECTORS multipath 1 queue_if_no_path 0 1 1 round-robin 0 2 1 $(numbers $1) 1 $(numbers $2) 1"
dd if=/dev/urandom of=/run/source bs=64k count=64 2> /dev/null
dd if=/run/source of=/dev/dm-0 bs=64k oflag=direct 2> /dev/null
for path in $1 $2; do
    dd if=/dev/$path bs=64k count=64 iflag=direct 2> /dev/null | cmp - /run/source
done
echo offline > /sys/block/$1/device/state
dd if=/dev/urandom of=/run/source bs=64k count=64 2> /dev/null
dd if=/run/source of=/dev/dm-0 bs=64k oflag=direct 2> /dev/null
dd if=/dev/$2 bs=64k count=64 iflag=direct 2> /dev/null | cmp - /run/source
dmsetup status
dmsetup remove --noudevsync paths
iscsiadm -m node -u > /dev/null 2>&1
echo "ALL RIGHT"
