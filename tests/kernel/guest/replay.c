// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// Replays histories of pool operations on Linux's dm-thin and prints one answer a line, in the order of the script.
//
// It speaks the device-mapper ioctls itself: that gives exact error numbers, and is fast enough for thousands of
// operations under emulation. The script's language is that of `Op` in ../src/script.rs, one operation a line; an answer
// is "ok", "E" and an error number, or what was asked for. What is no operation's own failure ends the program.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

enum { SECTOR = 512, WORDS = SECTOR / 8, BUFFER = 4 << 20, THINS = 64, OPERATION_SECONDS = 60 };

static unsigned long line_number;

static void die(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	printf("DIED at line %lu: ", line_number);
	vprintf(format, args);
	printf(" (%s)\n", strerror(errno));
	fflush(stdout);
	_exit(1);
}

/* ---- device-mapper ---- */

static int control = -1;
static union {
	struct dm_ioctl head;
	char bytes[16384];
} request;

static void begin(const char *name, unsigned flags)
{
	memset(&request, 0, sizeof(request.head) + sizeof(struct dm_target_spec));
	request.head.version[0] = DM_VERSION_MAJOR;
	request.head.data_size = sizeof(request);
	request.head.data_start = sizeof(request.head);
	request.head.flags = flags;
	snprintf(request.head.name, sizeof(request.head.name), "%s", name);
}

static char *payload(void)
{
	return request.bytes + sizeof(request.head);
}

/* 0 or the error number. */
static int call(unsigned long command)
{
	return ioctl(control, command, &request) ? errno : 0;
}

static int load(const char *name, uint64_t sectors, const char *type, const char *parameters)
{
	struct dm_target_spec *spec = (void *)payload();
	begin(name, 0);
	request.head.target_count = 1;
	spec->length = sectors;
	snprintf(spec->target_type, sizeof(spec->target_type), "%s", type);
	snprintf((char *)(spec + 1), 4096, "%s", parameters);
	return call(DM_TABLE_LOAD);
}

static int resume(const char *name)
{
	begin(name, DM_NOFLUSH_FLAG);
	return call(DM_DEV_SUSPEND);
}

static int suspend(const char *name)
{
	begin(name, DM_SUSPEND_FLAG | DM_NOFLUSH_FLAG);
	return call(DM_DEV_SUSPEND);
}

static int remove_device(const char *name)
{
	begin(name, 0);
	return call(DM_DEV_REMOVE);
}

/* Makes a device; *dev is its number. What fails leaves nothing behind. */
static int create(const char *name, uint64_t sectors, const char *type, const char *parameters, uint64_t *dev)
{
	int error;
	begin(name, 0);
	if ((error = call(DM_DEV_CREATE)))
		die("cannot create %s: %d", name, error);
	*dev = request.head.dev;
	if ((error = load(name, sectors, type, parameters)) || (error = resume(name)))
		remove_device(name);
	return error;
}

static const char *status(const char *name, unsigned flags)
{
	begin(name, flags);
	if (call(DM_TABLE_STATUS))
		die("no status of %s", name);
	return payload() + sizeof(struct dm_target_spec);
}

/* ---- contents: the same as in ../src/script.rs ---- */

static void pattern(uint64_t *out, uint64_t sector, uint64_t sectors, uint64_t seed)
{
	for (uint64_t s = sector; s < sector + sectors; s++) {
		uint64_t word = (seed + 1) * 0x9E3779B97F4A7C15u ^ s * 0xC2B2AE3D27D4EB4Fu;
		for (int i = 0; i < WORDS; i++) {
			*out++ = word;
			word += 0x165667B19E3779F9u;
		}
	}
}

static uint64_t digest(const uint64_t *words, size_t count)
{
	uint64_t hash = 0;
	for (size_t i = 0; i < count; i++)
		hash = ((hash << 5 | hash >> 59) ^ words[i]) * 0x9E3779B97F4A7C15u;
	return hash;
}

/* ---- the pool of the history at hand ---- */

struct history {
	uint64_t meta_base, meta_sectors, data_base, data_slot_sectors, data_blocks, block_sectors;
	char pool_arguments[256]; /* low water and features */
	uint64_t pool_dev, meta_dev, data_dev;
};

struct thin {
	int used, fd, has_origin;
	uint64_t id, origin_dev;
};

static struct history now;
static struct thin thins[THINS];
static uint64_t *buffer, *queue_buffer;
static uint64_t meta_disk, data_disk, origin_disk;

static uint64_t disk_number(const char *path)
{
	struct stat info;
	if (stat(path, &info))
		die("no disk %s", path);
	return info.st_rdev;
}

#define DEV(dev) major(dev), minor(dev)

static void linear(char *out, size_t size, uint64_t disk, uint64_t base)
{
	snprintf(out, size, "%u:%u %llu", DEV(disk), (unsigned long long)base);
}

static void make_linear(const char *name, uint64_t disk, uint64_t base, uint64_t sectors, uint64_t *dev)
{
	char parameters[64];
	linear(parameters, sizeof(parameters), disk, base);
	int error = create(name, sectors, "linear", parameters, dev);
	if (error)
		die("%s: %d", name, error);
}

static void pool_parameters(char *out, size_t size)
{
	snprintf(out, size, "%u:%u %u:%u %llu %s", DEV(now.meta_dev), DEV(now.data_dev),
		 (unsigned long long)now.block_sectors, now.pool_arguments);
}

static void begin_history(const char *arguments)
{
	unsigned long long n[6];
	if (sscanf(arguments, "%llu %llu %llu %llu %llu %llu", n, n + 1, n + 2, n + 3, n + 4, n + 5) != 6)
		die("bad history");
	now = (struct history){ .meta_base = n[0], .meta_sectors = n[1], .data_base = n[2], .data_slot_sectors = n[3],
				.data_blocks = n[4], .block_sectors = n[5] };
	make_linear("meta", meta_disk, now.meta_base, now.meta_sectors, &now.meta_dev);
	make_linear("data", data_disk, now.data_base, now.data_slot_sectors, &now.data_dev);
}

static void end_history(void)
{
	if (remove_device("data") || remove_device("meta"))
		die("the disks are in use");
}

static int open_pool(const char *arguments)
{
	char parameters[512];
	int skip = 0;
	unsigned timeout;
	if (sscanf(arguments, "%u %n", &timeout, &skip) != 1)
		die("bad pool");
	int fd = open("/sys/module/dm_thin_pool/parameters/no_space_timeout", O_WRONLY);
	if (fd < 0 || dprintf(fd, "%u\n", timeout) < 0 || close(fd))
		die("no_space_timeout");
	snprintf(now.pool_arguments, sizeof(now.pool_arguments), "%s", arguments + skip);
	pool_parameters(parameters, sizeof(parameters));
	return create("pool", now.data_blocks * now.block_sectors, "thin-pool", parameters, &now.pool_dev);
}

/* Loads the pool's table for this many data blocks; where Linux refuses them, the old number again. */
static int grow_data(uint64_t blocks)
{
	char parameters[512];
	pool_parameters(parameters, sizeof(parameters));
	int error = load("pool", blocks * now.block_sectors, "thin-pool", parameters);
	if (!error)
		error = resume("pool");
	if (!error) {
		now.data_blocks = blocks;
		return 0;
	}
	int back = load("pool", now.data_blocks * now.block_sectors, "thin-pool", parameters);
	if (back || (back = resume("pool")))
		die("the pool does not resume: %d after %d", back, error);
	return error;
}

static int grow_metadata(uint64_t sectors)
{
	char parameters[64];
	now.meta_sectors = sectors;
	linear(parameters, sizeof(parameters), meta_disk, now.meta_base);
	int error = suspend("pool");
	if (error || load("meta", sectors, "linear", parameters) || resume("meta"))
		die("the metadata disk does not grow: %d", error);
	return resume("pool");
}

/* ---- thin devices ---- */

static struct thin *find(uint64_t id)
{
	for (int i = 0; i < THINS; i++)
		if (thins[i].used && thins[i].id == id)
			return &thins[i];
	die("thin %llu is not open", (unsigned long long)id);
	return 0;
}

static void thin_name(char *out, size_t size, char kind, uint64_t id)
{
	snprintf(out, size, "%c%llu", kind, (unsigned long long)id);
}

static void thin_parameters(char *out, size_t size, const struct thin *thin)
{
	int n = snprintf(out, size, "%u:%u %llu", DEV(now.pool_dev), (unsigned long long)thin->id);
	if (thin->has_origin)
		snprintf(out + n, size - n, " %u:%u", DEV(thin->origin_dev));
}

static int open_thin(uint64_t id, uint64_t sectors, uint64_t origin_sectors)
{
	char name[32], origin_name[32], parameters[64], path[32];
	uint64_t dev;
	struct thin *thin = thins;
	while (thin < thins + THINS && thin->used)
		thin++;
	if (thin == thins + THINS)
		die("too many thins");
	*thin = (struct thin){ 0, -1, origin_sectors > 0, id, 0 };
	thin_name(name, sizeof(name), 't', id);
	thin_name(origin_name, sizeof(origin_name), 'o', id);
	if (thin->has_origin)
		make_linear(origin_name, origin_disk, 0, origin_sectors, &thin->origin_dev);
	thin_parameters(parameters, sizeof(parameters), thin);
	int error = create(name, sectors, "thin", parameters, &dev);
	if (error) {
		if (thin->has_origin && remove_device(origin_name))
			die("%s stays", origin_name);
		return error;
	}
	snprintf(path, sizeof(path), "/dev/dm-%u", minor(dev));
	thin->fd = open(path, O_RDWR | O_DIRECT);
	if (thin->fd < 0)
		die("cannot open %s", path);
	thin->used = 1;
	return 0;
}

static int close_thin(uint64_t id)
{
	char name[32];
	struct thin *thin = find(id);
	close(thin->fd);
	thin_name(name, sizeof(name), 't', id);
	int error = remove_device(name);
	if (error)
		die("%s cannot be removed: %d", name, error);
	thin_name(name, sizeof(name), 'o', id);
	if (thin->has_origin && remove_device(name))
		die("%s stays", name);
	thin->used = 0;
	return 0;
}

static int resize_thin(uint64_t id, uint64_t sectors)
{
	char name[32], parameters[64];
	thin_name(name, sizeof(name), 't', id);
	thin_parameters(parameters, sizeof(parameters), find(id));
	int error = load(name, sectors, "thin", parameters);
	return error ? error : resume(name);
}

/* ---- reads, writes, discards ---- */

struct write {
	int fd, flags, error;
	uint64_t sector, sectors, seed, *buffer;
	atomic_int done;
};

static int write_now(struct write *write)
{
	struct iovec part = { write->buffer, write->sectors * SECTOR };
	pattern(write->buffer, write->sector, write->sectors, write->seed);
	ssize_t n = pwritev2(write->fd, &part, 1, write->sector * SECTOR, write->flags);
	if (n < 0)
		return errno;
	if ((size_t)n != part.iov_len)
		die("a write of %zd bytes in place of %zu", n, part.iov_len);
	return 0;
}

static void read_now(int fd, uint64_t sector, uint64_t sectors)
{
	ssize_t n = pread(fd, buffer, sectors * SECTOR, sector * SECTOR);
	if (n < 0)
		printf("E%d\n", errno);
	else if ((uint64_t)n != sectors * SECTOR)
		die("a read of %zd bytes in place of %llu", n, (unsigned long long)sectors * SECTOR);
	else
		printf("%016llx\n", (unsigned long long)digest(buffer, sectors * WORDS));
}

static int discard(int fd, uint64_t sector, uint64_t sectors)
{
	uint64_t range[2] = { sector * SECTOR, sectors * SECTOR };
	return ioctl(fd, BLKDISCARD, range) ? errno : 0;
}

/* The one write that may wait for data space. */
static struct write queued;
static pthread_t queued_thread;

static void *queued_main(void *unused)
{
	(void)unused;
	queued.error = write_now(&queued);
	atomic_store(&queued.done, 1);
	return 0;
}

/* Waits until the pool's status has this word, or the queued write is done, at most some seconds. */
static int wait_for(const char *word)
{
	for (int i = 0; i < OPERATION_SECONDS * 50; i++) {
		if (strstr(status("pool", DM_NOFLUSH_FLAG), word))
			return 1;
		if (atomic_load(&queued.done))
			return 0;
		usleep(10000);
	}
	return 0;
}

static void answer(int error)
{
	if (error)
		printf("E%d\n", error);
	else
		puts("ok");
}

static void join_queued(void)
{
	if (pthread_join(queued_thread, 0))
		die("no thread");
	answer(queued.error);
}

static void queue(struct write write)
{
	queued.fd = write.fd;
	queued.flags = 0;
	queued.sector = write.sector;
	queued.sectors = write.sectors;
	queued.seed = write.seed;
	queued.buffer = queue_buffer;
	atomic_store(&queued.done, 0);
	if (pthread_create(&queued_thread, 0, queued_main, 0))
		die("no thread");
	wait_for("out_of_data_space");
	usleep(30000); /* in that mode already: the time a write takes that does not wait */
	if (atomic_load(&queued.done))
		join_queued();
	else
		puts("queued");
}

/* ---- the script ---- */

static int message(const char *text)
{
	begin("pool", 0);
	struct dm_target_msg *msg = (void *)payload();
	msg->sector = 0;
	snprintf(msg->message, 4096, "%s", text);
	return call(DM_TARGET_MSG);
}

static void operate(char kind, const char *rest)
{
	unsigned long long n[4] = { 0 };
	char name[32];
	sscanf(rest, "%llu %llu %llu %llu", n, n + 1, n + 2, n + 3);
	switch (kind) {
	case 'H': return begin_history(rest);
	case 'E': return end_history();
	case 'P': return answer(open_pool(rest));
	case 'X': return answer(remove_device("pool"));
	case 'M': return answer(message(rest));
	case 'O': return answer(open_thin(n[0], n[1], n[2]));
	case 'C': return answer(close_thin(n[0]));
	case 'Z': return answer(resize_thin(n[0], n[1]));
	case 'w':
	case 'F': {
		struct write write = { .fd = find(n[0])->fd, .flags = kind == 'F' ? RWF_DSYNC : 0, .sector = n[1],
				       .sectors = n[2], .seed = n[3], .buffer = buffer };
		return answer(write_now(&write));
	}
	case 'q': return queue((struct write){ .fd = find(n[0])->fd, .sector = n[1], .sectors = n[2], .seed = n[3] });
	case 'j': return join_queued();
	case 'T': return answer(wait_for("error_if_no_space") ? 0 : ETIMEDOUT);
	case 'r': return read_now(find(n[0])->fd, n[1], n[2]);
	case 'd': return answer(discard(find(n[0])->fd, n[1], n[2]));
	case 'f': return answer(fsync(find(n[0])->fd) ? errno : 0);
	case 's': puts(status("pool", 0)); return;
	case 't':
		thin_name(name, sizeof(name), 't', n[0]);
		puts(status(name, 0));
		return;
	case 'g': return answer(grow_data(n[0]));
	case 'G': return answer(grow_metadata(n[0]));
	default: die("no operation %c", kind);
	}
}

/* Ends the program when one operation takes too long: a write that waits, but should not. */
static atomic_ulong started_line;

static void *watch(void *unused)
{
	unsigned long last = 0, seconds = 0;
	(void)unused;
	for (;;) {
		sleep(1);
		unsigned long line = atomic_load(&started_line);
		seconds = line == last ? seconds + 1 : 0;
		last = line;
		if (seconds > 2 * OPERATION_SECONDS) {
			errno = ETIMEDOUT;
			die("the operation does not end");
		}
	}
	return 0;
}

int main(int argc, char **argv)
{
	char line[4096];
	pthread_t watcher;
	FILE *script = argc == 2 ? fopen(argv[1], "r") : 0;
	control = open("/dev/mapper/control", O_RDWR);
	if (!script || control < 0 || pthread_create(&watcher, 0, watch, 0))
		die("usage: replay SCRIPT");
	meta_disk = disk_number("/dev/disk/meta");
	data_disk = disk_number("/dev/disk/data");
	origin_disk = disk_number("/dev/disk/origin");
	if (posix_memalign((void **)&buffer, 4096, BUFFER) || posix_memalign((void **)&queue_buffer, 4096, BUFFER))
		die("no memory");
	while (fgets(line, sizeof(line), script)) {
		atomic_store(&started_line, ++line_number);
		line[strcspn(line, "\n")] = 0;
		operate(line[0], line[1] ? line + 2 : line + 1);
		if (line[0] == 'E')
			fflush(stdout);
	}
	puts("END");
	return 0;
}
