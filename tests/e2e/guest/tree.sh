# Guest script of linux_initiator: makes a file system with a tree of files on a volume, waits until a snapshot is
# exported, changes the tree, and then finds the old one on the snapshot and the new one on the volume.
# Environment: PORT, VOLUME and SNAPSHOT (target names).
set -e
HOST=10.0.2.2

device_of() { # the disk of a target that is logged in to
    for session in /sys/class/iscsi_session/session*; do
        [ "$(cat $session/targetname)" = $1 ] && ls $session/device/target*/*:0/block | sed 's,^,/dev/,'
    done
}
sums() { (cd $1 && find . -type f | sort | xargs md5sum); }

lab-login $HOST $PORT $VOLUME > /dev/null
dev=$(device_of $VOLUME)
mkfs.ext4 -q $dev 2>&1
mkdir -p /mnt/volume /mnt/snapshot
mount -t ext4 $dev /mnt/volume
mkdir /mnt/volume/tree
cp -a /usr/sbin /usr/lib/busybox /lib/modules /mnt/volume/tree
seq 1 200000 > /mnt/volume/tree/numbers
ln -s numbers /mnt/volume/tree/link
sums /mnt/volume/tree > /root/then
sync
echo "TREE READY $(wc -l < /root/then) files, $(du -sk /mnt/volume | cut -f1) KiB"

n=0
until lab-login $HOST $PORT $SNAPSHOT > /dev/null 2>&1; do
    n=$((n + 1))
    [ $n -lt 100 ] || { echo "no snapshot came"; exit 1; }
    sleep 0.2
done
n=0
until snap=$(device_of $SNAPSHOT) && [ -b "$snap" ]; do
    n=$((n + 1))
    [ $n -lt 100 ] || { echo "no disk of the snapshot came"; exit 1; }
    sleep 0.1
done
echo "SNAPSHOT SEEN at $snap, the volume is $dev"

rm -r /mnt/volume/tree/sbin
seq 200000 -1 1 > /mnt/volume/tree/numbers
mv /mnt/volume/tree/link /mnt/volume/tree/moved
dd if=/dev/urandom of=/mnt/volume/tree/new bs=64k count=40 2>/dev/null
sums /mnt/volume/tree > /root/now
umount /mnt/volume
if cmp -s /root/then /root/now; then echo "nothing changed"; exit 1; fi

# The snapshot was taken of a mounted file system: mounting it replays the journal.
mount -t ext4 $snap /mnt/snapshot
umount /mnt/snapshot
fsck.ext4 -fn $snap 2>&1
fsck.ext4 -fn $dev 2>&1
echo 3 > /proc/sys/vm/drop_caches
mount -t ext4 $dev /mnt/volume
mount -t ext4 $snap /mnt/snapshot
sums /mnt/volume/tree | diff - /root/now
sums /mnt/snapshot/tree | diff - /root/then
[ "$(readlink /mnt/snapshot/tree/link)" = numbers ]
[ "$(readlink /mnt/volume/tree/moved)" = numbers ]
rm -r /mnt/volume/tree
fstrim -v /mnt/volume
umount /mnt/volume /mnt/snapshot
iscsiadm -m node -T $SNAPSHOT --logout > /dev/null
iscsiadm -m node -T $VOLUME --logout > /dev/null
echo "TREES RIGHT"
