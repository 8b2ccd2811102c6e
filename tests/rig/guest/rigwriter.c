/* rigwriter: the guest's workload; every write of it can be judged afterwards.
 *
 *   rigwriter [-m order,slots,churn] [-n NSLOTS] [-d DELAY_US] [-c COUNT] [-p PROGRESS] DIR...
 *
 * For every sequence number N = 1, 2, 3, ... the directories are written strictly in the order
 * given, and within a directory these three, each durable before the next one is begun:
 *
 *   order   append a 512-byte record N to DIR/order.log
 *   slots   overwrite slot mix(N) % NSLOTS (4 KiB) of DIR/slots.bin with record N
 *   churn   write record N, 1 to 8 times, to DIR/churn/tmp; rename it to f_N; remove f_(N-64)
 *
 * When N is durable everywhere, "D N\n" goes to the progress port. Started again, the writer goes
 * on from the last record that it finds, having first caught up the directories that lag.
 *
 * Every record starts with struct header; its CRC-32 covers the whole record, the field itself
 * taken as zero. tests/rig/records.py reads the same format. Any failing call ends the program.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MAX_TARGETS = 8, ORDER_SIZE = 512, SLOT_SIZE = 4096, CHURN_KEPT = 64 };

static const char MAGIC[] = "RIGREC01";

struct __attribute__((packed)) header {
    char magic[8];
    uint64_t seq;
    uint32_t disk;
    uint32_t slot;
    uint64_t nslots;
    uint64_t time_ns;
    uint32_t length;
    uint32_t crc;
};

/* A file descriptor of -1: this kind of record is not written here. */
struct target {
    const char *dir;
    int order_fd, slots_fd, churn_fd;
    uint64_t order_seq, slots_seq, churn_seq; /* the last record that is in place */
};

static struct target targets[MAX_TARGETS];
static int target_count;
static uint64_t slot_count = 256;
static uint8_t *buffer; /* SLOT_SIZE bytes */

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void check(int failed, const char *what)
{
    if (failed)
        die(what);
}

/* ---- records ---------------------------------------------------------------------------- */

static uint32_t crc32(const uint8_t *data, size_t length)
{
    static uint32_t table[256];
    uint32_t crc = ~0u;

    if (!table[1])
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t entry = i;
            for (int bit = 0; bit < 8; bit++)
                entry = entry & 1 ? 0xEDB88320u ^ (entry >> 1) : entry >> 1;
            table[i] = entry;
        }
    while (length--)
        crc = table[(crc ^ *data++) & 255] ^ (crc >> 8);
    return ~crc;
}

/* splitmix64: which slot a record goes to, and what fills it. */
static uint64_t mix(uint64_t x)
{
    x += 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

/* Make record `seq` in the buffer. */
static void make_record(uint32_t length, uint64_t seq, uint32_t disk, uint32_t slot)
{
    struct header *header = (struct header *)buffer;
    uint64_t word = mix(seq * 31 + disk);
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    memset(header, 0, sizeof *header);
    memcpy(header->magic, MAGIC, sizeof header->magic);
    header->seq = seq;
    header->disk = disk;
    header->slot = slot;
    header->nslots = slot_count;
    header->time_ns = now.tv_sec * 1000000000ull + now.tv_nsec;
    header->length = length;
    for (uint32_t i = sizeof *header; i < length; i += sizeof word) {
        word = mix(word);
        memcpy(buffer + i, &word, sizeof word);
    }
    header->crc = crc32(buffer, length);
}

/* The sequence number of the record in the buffer; 0 if there is no valid one. */
static uint64_t record_seq(uint32_t length)
{
    struct header *header = (struct header *)buffer;
    uint32_t crc = header->crc;

    if (memcmp(header->magic, MAGIC, sizeof header->magic) || header->length != length)
        return 0;
    header->crc = 0;
    return crc32(buffer, length) == crc ? header->seq : 0;
}

/* ---- opening: where did the last run stop? ---------------------------------------------- */

static int open_inside(const char *dir, const char *name, int flags)
{
    char path[300];
    int fd;

    snprintf(path, sizeof path, "%s/%s", dir, name);
    fd = open(path, flags, 0644);
    check(fd < 0, path);
    return fd;
}

static void open_order(struct target *target)
{
    off_t count;

    target->order_fd = open_inside(target->dir, "order.log", O_RDWR | O_CREAT);
    count = lseek(target->order_fd, 0, SEEK_END) / ORDER_SIZE;
    for (; count > 0; count--) {
        if (pread(target->order_fd, buffer, ORDER_SIZE, (count - 1) * ORDER_SIZE) == ORDER_SIZE
            && (target->order_seq = record_seq(ORDER_SIZE)))
            break;
    }
    check(ftruncate(target->order_fd, count * ORDER_SIZE), "truncate order.log");
    lseek(target->order_fd, 0, SEEK_END);
}

static void open_slots(struct target *target)
{
    struct stat info;
    uint64_t seq;

    target->slots_fd = open_inside(target->dir, "slots.bin", O_RDWR | O_CREAT);
    check(fstat(target->slots_fd, &info), "stat slots.bin");
    memset(buffer, 0, SLOT_SIZE);
    for (uint64_t i = info.st_size / SLOT_SIZE; i < slot_count; i++)
        check(pwrite(target->slots_fd, buffer, SLOT_SIZE, i * SLOT_SIZE) != SLOT_SIZE, "slots.bin");
    check(fsync(target->slots_fd), "sync slots.bin");
    for (uint64_t i = 0; i < slot_count; i++) {
        check(pread(target->slots_fd, buffer, SLOT_SIZE, i * SLOT_SIZE) != SLOT_SIZE, "slots.bin");
        seq = record_seq(SLOT_SIZE);
        if (seq > target->slots_seq)
            target->slots_seq = seq;
    }
}

static void open_churn(struct target *target)
{
    char path[300];
    struct dirent *entry;
    unsigned long long seq;
    DIR *listing;

    snprintf(path, sizeof path, "%s/churn", target->dir);
    check(mkdir(path, 0755) && errno != EEXIST, path);
    target->churn_fd = open(path, O_RDONLY | O_DIRECTORY);
    check(target->churn_fd < 0, path);
    listing = opendir(path);
    check(!listing, path);
    while ((entry = readdir(listing)))
        if (sscanf(entry->d_name, "f_%llu", &seq) == 1 && seq > target->churn_seq)
            target->churn_seq = seq;
    closedir(listing);
}

static void open_target(struct target *target, const char *dir, const char *mode)
{
    int fd;

    target->dir = dir;
    target->order_fd = target->slots_fd = target->churn_fd = -1;
    if (strstr(mode, "order"))
        open_order(target);
    if (strstr(mode, "slots"))
        open_slots(target);
    if (strstr(mode, "churn"))
        open_churn(target);
    /* The new directory entries are durable before the first record. */
    fd = open_inside(dir, ".", O_RDONLY | O_DIRECTORY);
    check(fsync(fd), dir);
    close(fd);
}

/* Widen first..last, the least and greatest last record of all the files. */
static void widen(int fd, uint64_t seq, uint64_t *first, uint64_t *last)
{
    if (fd < 0)
        return;
    if (seq < *first)
        *first = seq;
    if (seq > *last)
        *last = seq;
}

/* ---- writing ---------------------------------------------------------------------------- */

static void write_order(struct target *target, uint32_t disk, uint64_t seq)
{
    make_record(ORDER_SIZE, seq, disk, 0);
    check(write(target->order_fd, buffer, ORDER_SIZE) != ORDER_SIZE, "append to order.log");
    check(fdatasync(target->order_fd), "sync order.log");
}

static void write_slot(struct target *target, uint32_t disk, uint64_t seq)
{
    uint32_t slot = mix(seq) % slot_count;
    off_t offset = (off_t)slot * SLOT_SIZE;

    make_record(SLOT_SIZE, seq, disk, slot);
    check(pwrite(target->slots_fd, buffer, SLOT_SIZE, offset) != SLOT_SIZE, "write slots.bin");
    check(fdatasync(target->slots_fd), "sync slots.bin");
}

static void write_churn(struct target *target, uint32_t disk, uint64_t seq)
{
    uint32_t blocks = 1 + mix(seq ^ 77) % 8;
    char name[40];
    int fd = openat(target->churn_fd, "tmp", O_RDWR | O_CREAT | O_TRUNC, 0644);

    check(fd < 0, "create churn/tmp");
    for (uint32_t i = 0; i < blocks; i++) {
        make_record(SLOT_SIZE, seq, disk, i);
        check(write(fd, buffer, SLOT_SIZE) != SLOT_SIZE, "write churn/tmp");
    }
    check(fsync(fd), "sync churn/tmp");
    close(fd);
    snprintf(name, sizeof name, "f_%llu", (unsigned long long)seq);
    check(renameat(target->churn_fd, "tmp", target->churn_fd, name), "rename churn/tmp");
    if (seq > CHURN_KEPT) {
        snprintf(name, sizeof name, "f_%llu", (unsigned long long)seq - CHURN_KEPT);
        check(unlinkat(target->churn_fd, name, 0) && errno != ENOENT, "remove from churn");
    }
    check(fsync(target->churn_fd), "sync churn");
}

static void write_everywhere(uint64_t seq)
{
    for (int disk = 0; disk < target_count; disk++) {
        struct target *target = &targets[disk];

        if (target->order_fd >= 0 && seq > target->order_seq)
            write_order(target, disk, seq);
        if (target->slots_fd >= 0 && seq > target->slots_seq)
            write_slot(target, disk, seq);
        if (target->churn_fd >= 0 && seq > target->churn_seq)
            write_churn(target, disk, seq);
    }
}

/* Nobody need listen: a full port only loses a line, and a later one says more. */
static void report(int fd, uint64_t seq)
{
    char line[40];
    int length = snprintf(line, sizeof line, "D %llu\n", (unsigned long long)seq);

    check(fd >= 0 && write(fd, line, length) < 0 && errno != EAGAIN, "progress port");
}

int main(int argc, char **argv)
{
    const char *mode = "order,slots,churn", *progress = NULL;
    uint64_t count = 0, first = UINT64_MAX, last = 0;
    int option, progress_fd = -1;
    useconds_t delay = 20000;

    while ((option = getopt(argc, argv, "m:n:d:c:p:")) != -1)
        switch (option) {
        case 'm': mode = optarg; break;
        case 'n': slot_count = strtoull(optarg, NULL, 0); break;
        case 'd': delay = strtoul(optarg, NULL, 0); break;
        case 'c': count = strtoull(optarg, NULL, 0); break;
        case 'p': progress = optarg; break;
        default: return 2;
        }
    buffer = malloc(SLOT_SIZE);
    check(!buffer, "malloc");
    for (; optind < argc && target_count < MAX_TARGETS; optind++, target_count++) {
        struct target *target = &targets[target_count];

        open_target(target, argv[optind], mode);
        widen(target->order_fd, target->order_seq, &first, &last);
        widen(target->slots_fd, target->slots_seq, &first, &last);
        widen(target->churn_fd, target->churn_seq, &first, &last);
    }
    if (first == UINT64_MAX)
        return 0; /* nothing to write */
    if (progress) {
        progress_fd = open(progress, O_WRONLY | O_NONBLOCK);
        check(progress_fd < 0, progress);
    }
    printf("goes on after record %llu\n", (unsigned long long)last);
    fflush(stdout);
    for (uint64_t seq = first + 1; !count || seq <= last + count; seq++) {
        write_everywhere(seq);
        if (seq >= last)
            report(progress_fd, seq);
        if (delay)
            usleep(delay);
    }
    return 0;
}
