# Guest script of linux_commands: what Linux's tools do to a volume. Space comes back by fstrim and blkdiscard, as the
# appliance's status shows; WRITE SAME, COMPARE AND WRITE, persistent reservations and EXTENDED COPY by sg3_utils; two sessions
# through two portal groups under dm-multipath, one of which is lost while fio writes and verifies.
# Environment: PORT, SECOND_PORT, HTTP_PORT, TOKEN, VOLUME, COPY (names of volumes), IQN, FIO_MIB.
set -e
HOST=10.0.2.2
MIB=1048576
mkdir -p /etc/iscsi /var/lib/iscsi /run/lock/iscsi /mnt/v
echo "InitiatorName=iqn.2003-01.org.linux-iscsi.lab:initiator" > /etc/iscsi/initiatorname.iscsi
cat > /etc/iscsi/iscsid.conf <<EOC
node.startup = manual
node.session.timeo.replacement_timeout = 60
node.conn[0].timeo.login_timeout = 15
node.conn[0].timeo.noop_out_interval = 5
node.conn[0].timeo.noop_out_timeout = 5
EOC
iscsid > /run/iscsid.log 2>&1

wrong() { echo "WRONG: $*"; exit 1; }
asked() { # asked PATH FIELD: a number of the appliance's status
    wget -q -O - --header "Authorization: Bearer $TOKEN" http://$HOST:$HTTP_PORT$1 | tr ',{' '\n\n' |
        sed -n "s/.*\"$2\": *\([0-9]*\).*/\1/p" | head -n 1
}
mapped() { asked /v1/volumes/$1 mapped_bytes; }
login() { # login VOLUME PORT GROUP: prints the disk
    iscsiadm -m node -o new -T $IQN:$1 -p $HOST:$2,$3 > /dev/null
    iscsiadm -m node -T $IQN:$1 -p $HOST:$2,$3 --login > /run/login.log 2>&1 || { cat /run/login.log >&2; exit 1; }
    session=$(iscsiadm -m session | sed -n "s/.*\[\([0-9]*\)\] $HOST:$2,$3 $IQN:$1 .*/\1/p")
    n=0
    until disk=$(ls /sys/class/iscsi_session/session$session/device/target*/*:0/block 2> /dev/null); do
        n=$((n + 1))
        [ $n -lt 200 ] || { echo "no disk came" >&2; exit 1; }
        sleep 0.1
    done
    echo $disk
}
generic() { echo /dev/$(ls /sys/block/$1/device/scsi_generic); }
same() { # same DISK LBA BLOCKS FILE
    dd if=/dev/$1 bs=512 skip=$2 count=$3 iflag=direct 2> /dev/null | cmp - $4 || wrong "LBA $2 of $1 is not $4"
}

a=$(login $VOLUME $PORT 1)
mkfs.ext4 -q -E nodiscard /dev/$a 2>&1
mount -t ext4 /dev/$a /mnt/v
dd if=/dev/urandom of=/mnt/v/big bs=64k count=640 2> /dev/null
sync
full=$(mapped $VOLUME)
rm /mnt/v/big
sync
fstrim /mnt/v
trimmed=$(mapped $VOLUME)
[ $((full - trimmed)) -ge $((32 * MIB)) ] || wrong "fstrim: $full bytes mapped before, $trimmed after"
umount /mnt/v
blkdiscard /dev/$a
[ $(mapped $VOLUME) = 0 ] || wrong "blkdiscard leaves $(mapped $VOLUME) bytes mapped"
echo "SPACE came back: $full, $trimmed, 0 bytes"

dd if=/dev/urandom of=/run/block bs=512 count=1 2> /dev/null
: > /run/blocks
for n in $(seq 256); do cat /run/block >> /run/blocks; done
sg_write_same --16 --in=/run/block --lba=4096 --num=256 /dev/$a
same $a 4096 256 /run/blocks
[ $(mapped $VOLUME) = 131072 ] || wrong "WRITE SAME maps $(mapped $VOLUME) bytes"
sg_write_same --16 --unmap --lba=4096 --num=256 --xferlen=512 --in=/dev/zero /dev/$a
dd if=/dev/zero of=/run/zeroes bs=512 count=256 2> /dev/null
same $a 4096 256 /run/zeroes
[ $(mapped $VOLUME) = 0 ] || wrong "WRITE SAME with UNMAP leaves $(mapped $VOLUME) bytes mapped"

dd if=/run/zeroes of=/run/pair bs=512 count=1 2> /dev/null
cat /run/block >> /run/pair
sg_compare_and_write --in=/run/pair --lba=77 --num=1 --xferlen=1024 /dev/$a
same $a 77 1 /run/block
status=0
sg_compare_and_write --in=/run/pair --lba=77 --num=1 --xferlen=1024 /dev/$a 2> /dev/null || status=$?
[ $status = 14 ] || wrong "a miscompare ends with $status"
echo "WRITES are right"

b=$(login $VOLUME $SECOND_PORT 2)
[ "$(cat /sys/block/$a/device/wwid)" = "$(cat /sys/block/$b/device/wwid)" ] || wrong "the paths lead to two disks"
sg_persist --out --register --param-sark=0xabc /dev/$a > /dev/null
sg_persist --out --reserve --param-rk=0xabc --prout-type=5 /dev/$a > /dev/null
sg_persist --in --read-keys /dev/$b | grep -q 0xabc || wrong "the other path does not see the key"
status=0
sg_write_same --in=/run/block --lba=0 --num=1 /dev/$b 2> /dev/null || status=$?
[ $status = 24 ] || wrong "a reservation conflict ends with $status"
sg_persist --out --register --param-sark=0xdef /dev/$b > /dev/null
sg_write_same --in=/run/block --lba=0 --num=1 /dev/$b
sg_persist --out --clear --param-rk=0xabc /dev/$a > /dev/null
sg_persist --in --read-reservation /dev/$a | grep -q "NO reservation" || wrong "it is reserved still"
echo "RESERVATIONS are right"

c=$(login $COPY $PORT 1)
dd if=/dev/urandom of=/run/source bs=64k count=64 2> /dev/null
dd if=/run/source of=/dev/$a bs=64k oflag=direct 2> /dev/null
sync
used=$(asked /v1/pool data_used_blocks)
sg_xcopy if=$(generic $a) of=$(generic $c) bs=512 count=8192 > /run/xcopy.log 2>&1 || { cat /run/xcopy.log; exit 1; }
same $c 0 8192 /run/source
[ $(mapped $COPY) = $((4 * MIB)) ] || wrong "the copy maps $(mapped $COPY) bytes"
[ $(asked /v1/pool data_used_blocks) = $used ] || wrong "the copy took data blocks"
echo "COPIED by sharing"

sectors=$(cat /sys/block/$a/size)
dmsetup create paths --noudevsync --noudevrules --table \
    "0 $sectors multipath 1 queue_if_no_path 0 1 1 round-robin 0 2 1 $(cat /sys/block/$a/dev) 1 $(cat /sys/block/$b/dev) 1"
(sleep 2; echo offline > /sys/block/$a/device/state) &
# Slow enough that it goes on when the path is lost.
fio --name=paths --rate_iops=400 --filename=/dev/dm-0 --direct=1 --ioengine=libaio --iodepth=16 --rw=randwrite --bs=4k --size=64m \
    --io_size=${FIO_MIB}m --verify=crc32c --do_verify=1 --verify_fatal=1 --randseed=1 > /run/fio.log 2>&1 ||
    { cat /run/fio.log; wrong "fio"; }
wait
status=$(dmsetup status paths)
case "$status" in *" $(cat /sys/block/$a/dev) F "*) ;; *) wrong "no path was lost: $status" ;; esac
echo "VERIFIED: $(grep -m 2 'io=' /run/fio.log | tr -s ' ' | tr '\n' ' ')"
dmsetup remove --noudevsync paths
iscsiadm -m node -u > /dev/null 2>&1
echo "ALL RIGHT"
