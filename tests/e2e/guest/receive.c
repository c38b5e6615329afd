/* Receives a stream of thin-send-recv 1.1 onto a thin device, as thin_recv does (docs/stream.md): writes as it reads, skips what is optional,
 * compares the counts. An UNMAP is discarded in whole blocks, and written with zeroes where it covers a part of one.
 *
 * receive DEVICE STREAM BLOCK-BYTES; what follows END_STREAM in STREAM, a disk, is padding. */
#define _GNU_SOURCE
#include <endian.h>
#include <err.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { DATA, UNMAP, BEGIN, END };
#define MAGIC 0x24C4F02AAE2E4FA9ull
#define OPTIONAL (1u << 31)

struct header {
	uint64_t magic, offset, length;
	uint32_t command;
} __attribute__((packed));

static char buffer[1 << 20];
static int device, stream;

static void take(void *to, size_t length)
{
	for (size_t at = 0; at < length;) {
		ssize_t got = read(stream, (char *)to + at, length - at);
		if (got <= 0)
			err(1, "the stream is cut short");
		at += got;
	}
}

static void put(uint64_t offset, size_t length)
{
	if (pwrite(device, buffer, length, offset) != (ssize_t)length)
		err(1, "write at %llu", (unsigned long long)offset);
}

static void zero(uint64_t offset, uint64_t end)
{
	memset(buffer, 0, sizeof(buffer));
	for (; offset < end; offset += sizeof(buffer)) {
		uint64_t left = end - offset;
		put(offset, left < sizeof(buffer) ? left : sizeof(buffer));
	}
}

static void unmap(uint64_t offset, uint64_t length, uint64_t block)
{
	uint64_t end = offset + length;
	uint64_t range[2] = { (offset + block - 1) / block * block, end / block * block };

	if (range[0] >= range[1]) {
		zero(offset, end);
		return;
	}
	zero(offset, range[0]);
	zero(range[1], end);
	/* What is in the page cache must not come back. */
	if (fsync(device))
		err(1, "fsync");
	range[1] -= range[0];
	if (ioctl(device, BLKDISCARD, range))
		err(1, "discard at %llu", (unsigned long long)range[0]);
}

int main(int argc, char **argv)
{
	uint64_t counts[3] = { 0 }, said[3];
	struct header header;

	if (argc != 4)
		errx(2, "receive DEVICE STREAM BLOCK-BYTES");
	device = open(argv[1], O_RDWR);
	stream = open(argv[2], O_RDONLY);
	if (device < 0 || stream < 0)
		err(1, "open");
	for (;;) {
		take(&header, sizeof(header));
		uint32_t command = be32toh(header.command);
		uint64_t offset = be64toh(header.offset), left = be64toh(header.length);

		if (be64toh(header.magic) != MAGIC || (command == BEGIN) != (counts[0] == 0))
			errx(1, "chunk %llu is no chunk", (unsigned long long)counts[0]);
		counts[0]++;
		if (command == END)
			break;
		if (command == UNMAP) {
			counts[2]++;
			unmap(offset, left, strtoull(argv[3], NULL, 10));
		} else if (command == DATA || command & OPTIONAL) {
			counts[1] += command == DATA;
			while (left) {
				size_t piece = left < sizeof(buffer) ? left : sizeof(buffer);
				take(buffer, piece);
				if (command == DATA)
					put(offset, piece);
				offset += piece;
				left -= piece;
			}
		} else if (command != BEGIN) {
			errx(1, "command %u", command);
		}
	}
	take(said, sizeof(said));
	for (int i = 0; i < 3; i++)
		if (be64toh(said[i]) != counts[i])
			errx(1, "count %d: %llu, not %llu", i, (unsigned long long)be64toh(said[i]), (unsigned long long)counts[i]);
	if (fsync(device))
		err(1, "fsync");
	return 0;
}
