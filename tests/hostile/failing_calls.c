/* A library to preload: one call of a process fails once, on purpose.

   Nothing happens before fail_arm, nor in children. Files of Python itself are not counted, nor
   what is written to standard output and error. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

enum { OPEN, READ, WRITE, SYNC, RENAME, UNLINK, MKDIR, LINK, TRUNCATE, CHMOD, LOCK, CONNECT, SEND,
       RECEIVE, MAP, STATFS, LIST, STAT, SOCKET, PIPE,
       KINDS };
static const char *names[KINDS] = { "open", "read", "write", "sync", "rename", "unlink", "mkdir",
    "link", "truncate", "chmod", "lock", "connect", "send", "receive", "map", "statfs", "list",
    "stat", "socket", "pipe" };
static _Atomic long counts[KINDS];
static pid_t armed;
static int kind = -1, number;
static long nth, times;
static char ours[65536], paired[65536];

void fail_arm(const char *name, long at, long many, int error) {
    memset((void *)counts, 0, sizeof counts);
    for (kind = KINDS - 1; kind >= 0 && strcmp(names[kind], name); kind--) ;
    nth = at; times = many; number = error; armed = getpid();
}
void fail_disarm(void) { armed = 0; }
long fail_count(const char *name) {
    for (int i = 0; i < KINDS; i++) if (!strcmp(names[i], name)) return counts[i];
    return -1;
}
static int python(const char *path) {
    return path && (strstr(path, "/site-packages") || strstr(path, "/lib/python") || strstr(path, "/usr/lib")
        || strstr(path, ".py") || strstr(path, "/proc/self/fd"));
}
static int known(int fd) { return fd >= 0 && fd < 65536 && ours[fd]; }
static int fails(int which) {
    if (!armed || armed != getpid()) return 0;
    long now = atomic_fetch_add(&counts[which], 1) + 1;
    if (which != kind || now < nth || now >= nth + times) return 0;
    if (!number) kill(getpid(), SIGKILL);
    errno = number;
    return 1;
}
#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name)
#define ON(type, name, which, skip, params, args, ...) \
    type name params { REAL(type, name, __VA_ARGS__); \
        if (!(skip) && fails(which)) return (type)-1; return real args; }

static int opened(int fd, const char *path) {
    if (fd >= 0 && fd < 65536) ours[fd] = python(path);
    return fd;
}
#define OPENS(name) int name(const char *path, int flags, ...) { \
    REAL(int, name, const char *, int, mode_t); va_list list; va_start(list, flags); \
    mode_t mode = va_arg(list, mode_t); va_end(list); \
    if (!python(path) && fails(OPEN)) return -1; return opened(real(path, flags, mode), path); }
#define OPENSAT(name) int name(int at, const char *path, int flags, ...) { \
    REAL(int, name, int, const char *, int, mode_t); va_list list; va_start(list, flags); \
    mode_t mode = va_arg(list, mode_t); va_end(list); \
    if (!python(path) && fails(OPEN)) return -1; return opened(real(at, path, flags, mode), path); }
OPENS(open) OPENS(open64) OPENSAT(openat) OPENSAT(openat64)

ON(ssize_t, read, READ, known(fd), (int fd, void *b, size_t n), (fd, b, n), int, void *, size_t)
ON(ssize_t, pread, READ, known(fd), (int fd, void *b, size_t n, off_t o), (fd, b, n, o), int, void *, size_t, off_t)
ON(ssize_t, pread64, READ, known(fd), (int fd, void *b, size_t n, off_t o), (fd, b, n, o), int, void *, size_t, off_t)
ON(ssize_t, write, WRITE, fd == 1 || fd == 2, (int fd, const void *b, size_t n), (fd, b, n), int, const void *, size_t)
ON(ssize_t, pwrite, WRITE, 0, (int fd, const void *b, size_t n, off_t o), (fd, b, n, o), int, const void *, size_t, off_t)
ON(ssize_t, pwrite64, WRITE, 0, (int fd, const void *b, size_t n, off_t o), (fd, b, n, o), int, const void *, size_t, off_t)
ON(int, fsync, SYNC, 0, (int fd), (fd), int)
ON(int, fdatasync, SYNC, 0, (int fd), (fd), int)
ON(int, rename, RENAME, 0, (const char *a, const char *b), (a, b), const char *, const char *)
ON(int, renameat, RENAME, 0, (int x, const char *a, int y, const char *b), (x, a, y, b), int, const char *, int, const char *)
ON(int, renameat2, RENAME, 0, (int x, const char *a, int y, const char *b, unsigned f), (x, a, y, b, f), int, const char *, int, const char *, unsigned)
ON(int, unlink, UNLINK, 0, (const char *a), (a), const char *)
ON(int, unlinkat, UNLINK, 0, (int x, const char *a, int f), (x, a, f), int, const char *, int)
ON(int, rmdir, UNLINK, 0, (const char *a), (a), const char *)
ON(int, mkdir, MKDIR, 0, (const char *a, mode_t m), (a, m), const char *, mode_t)
ON(int, mkdirat, MKDIR, 0, (int x, const char *a, mode_t m), (x, a, m), int, const char *, mode_t)
ON(int, link, LINK, 0, (const char *a, const char *b), (a, b), const char *, const char *)
ON(int, linkat, LINK, 0, (int x, const char *a, int y, const char *b, int f), (x, a, y, b, f), int, const char *, int, const char *, int)
ON(int, ftruncate, TRUNCATE, 0, (int fd, off_t n), (fd, n), int, off_t)
ON(int, ftruncate64, TRUNCATE, 0, (int fd, off_t n), (fd, n), int, off_t)
ON(int, fchmod, CHMOD, 0, (int fd, mode_t m), (fd, m), int, mode_t)
ON(int, flock, LOCK, 0, (int fd, int o), (fd, o), int, int)
/* By one byte asyncio wakes itself, through a pair of sockets of its own. */
static int waking(int fd, size_t n) { return fd >= 0 && fd < 65536 && paired[fd] && (n == 1 || n == 4096); }
int socketpair(int domain, int type, int protocol, int fds[2]) {
    REAL(int, socketpair, int, int, int, int *);
    int result = real(domain, type, protocol, fds);
    for (int i = 0; !result && i < 2; i++) if (fds[i] < 65536) paired[fds[i]] = 1;
    return result;
}
int close(int fd) {
    REAL(int, close, int);
    if (fd >= 0 && fd < 65536) paired[fd] = 0;
    return real(fd);
}
ON(int, socket, SOCKET, 0, (int d, int t, int p), (d, t, p), int, int, int)
ON(int, pipe2, PIPE, 0, (int *f, int o), (f, o), int *, int)
ON(int, connect, CONNECT, 0, (int fd, const void *a, unsigned n), (fd, a, n), int, const void *, unsigned)
ON(ssize_t, send, SEND, waking(fd, n), (int fd, const void *b, size_t n, int f), (fd, b, n, f), int, const void *, size_t, int)
ON(ssize_t, sendto, SEND, 0, (int fd, const void *b, size_t n, int f, const void *a, unsigned l), (fd, b, n, f, a, l), int, const void *, size_t, int, const void *, unsigned)
ON(ssize_t, sendmsg, SEND, 0, (int fd, const void *m, int f), (fd, m, f), int, const void *, int)
ON(ssize_t, recv, RECEIVE, waking(fd, n), (int fd, void *b, size_t n, int f), (fd, b, n, f), int, void *, size_t, int)
ON(ssize_t, recvmsg, RECEIVE, 0, (int fd, void *m, int f), (fd, m, f), int, void *, int)
ON(void *, mmap, MAP, fd < 0 || known(fd), (void *p, size_t n, int r, int f, int fd, off_t o), (p, n, r, f, fd, o), void *, size_t, int, int, int, off_t)
ON(void *, mmap64, MAP, fd < 0 || known(fd), (void *p, size_t n, int r, int f, int fd, off_t o), (p, n, r, f, fd, o), void *, size_t, int, int, int, off_t)
ON(int, statvfs, STATFS, 0, (const char *a, void *b), (a, b), const char *, void *)
ON(int, statvfs64, STATFS, 0, (const char *a, void *b), (a, b), const char *, void *)
ON(int, fstatvfs, STATFS, 0, (int fd, void *b), (fd, b), int, void *)
ON(int, fstatvfs64, STATFS, 0, (int fd, void *b), (fd, b), int, void *)
ON(int, fstat, STAT, known(fd), (int fd, void *b), (fd, b), int, void *)
ON(int, fstat64, STAT, known(fd), (int fd, void *b), (fd, b), int, void *)
ON(int, fstatat, STAT, python(a), (int x, const char *a, void *b, int f), (x, a, b, f), int, const char *, void *, int)
ON(int, fstatat64, STAT, python(a), (int x, const char *a, void *b, int f), (x, a, b, f), int, const char *, void *, int)
#define LISTS(name, skip, params, args, ...) void *name params { REAL(void *, name, __VA_ARGS__); \
    if (!(skip) && fails(LIST)) return 0; return real args; }
LISTS(fdopendir, 0, (int fd), (fd), int)
LISTS(opendir, python(a), (const char *a), (a), const char *)
LISTS(readdir, 0, (void *d), (d), void *)
LISTS(readdir64, 0, (void *d), (d), void *)
