/* riglatency: how long a program in the guest waits for its writes.
 *
 *   riglatency [-d DELAY_US] DEVICE PORT
 *
 * Writes 4 KiB at random places of DEVICE, past the guest's page cache, one write after the other with
 * a pause after each, for ever. Reports to PORT, a line for every 16 writes: "L" and the microseconds
 * that each took by the guest's clock. Any failing call ends the program.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 4096, BATCH = 16 };

static void check(int failed, const char *what)
{
    if (failed) {
        perror(what);
        exit(1);
    }
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

/* xorshift64: where to write, and what. */
static uint64_t next(void)
{
    static uint64_t state = 88172645463325252ull;

    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

int main(int argc, char **argv)
{
    useconds_t delay = 1000;
    char line[BATCH * 12 + 4];
    uint64_t *buffer, pages;
    int option, disk, port, length;

    while ((option = getopt(argc, argv, "d:")) != -1) {
        if (option != 'd')
            return 2;
        delay = strtoul(optarg, NULL, 0);
    }
    if (argc - optind != 2)
        return 2;
    disk = open(argv[optind], O_RDWR | O_DIRECT);
    check(disk < 0, argv[optind]);
    port = open(argv[optind + 1], O_WRONLY);
    check(port < 0, argv[optind + 1]);
    pages = lseek(disk, 0, SEEK_END) / SIZE;
    check(posix_memalign((void **)&buffer, SIZE, SIZE), "posix_memalign");
    for (;;) {
        length = sprintf(line, "L");
        for (int i = 0; i < BATCH; i++) {
            off_t offset = next() % pages * SIZE;
            uint64_t start;

            for (int j = 0; j < SIZE / 8; j++)
                buffer[j] = next();
            start = now_ns();
            check(pwrite(disk, buffer, SIZE, offset) != SIZE, "write");
            length += sprintf(line + length, " %llu",
                              (unsigned long long)(now_ns() - start) / 1000);
            if (delay)
                usleep(delay);
        }
        length += sprintf(line + length, "\n");
        check(write(port, line, length) != length, "report");
    }
}
