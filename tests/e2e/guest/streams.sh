# Guest script: receives a full stream and an increment into thin pools of two block sizes, then makes changes of Linux's own.
# Disks: full, increment (streams), meta-N and data-N for each block size of N sectors. SECTORS: size of the volume.
# Each line: what was done, the block size, the volume's SHA-256, its mapped sectors.
set -e
msg() { dmsetup message pool 0 "$*"; }
snap() {
    dmsetup suspend t0
    msg create_snap $1 0
    dmsetup resume t0
}
tell() {
    sync
    echo 3 > /proc/sys/vm/drop_caches
    echo "$1 $2 $(sha256sum < /dev/mapper/t0 | cut -d ' ' -f 1) $(dmsetup status t0 | cut -d ' ' -f 4)"
}
for block in $BLOCKS; do
    data=/dev/disk/data-$block
    dmsetup create pool --table "0 $(cat /sys/block/$(basename $(readlink $data))/size) thin-pool /dev/disk/meta-$block $data $block 0"
    msg create_thin 0
    dmsetup create t0 --table "0 $SECTORS thin /dev/mapper/pool 0"
    for stream in full increment; do
        /lab/receive /dev/mapper/t0 /dev/disk/$stream $((block * 512))
        tell $stream $block
        [ $stream = full ] && snap 1
    done
    # A new block, a part of one, a discard, and a write behind it.
    for at in 3 700 1501; do
        dd if=/dev/urandom of=/dev/mapper/t0 bs=16384 seek=$at count=5 conv=notrunc,fsync 2>/dev/null
    done
    blkdiscard -o $((40 * block * 512)) -l $((25 * block * 512)) /dev/mapper/t0
    dd if=/dev/urandom of=/dev/mapper/t0 bs=512 seek=$((50 * block + 7)) count=3 conv=notrunc,fsync 2>/dev/null
    tell own $block
    dmsetup remove t0
    dmsetup remove pool
done
