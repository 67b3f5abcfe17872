/* Faults of the operating system, for what a process does with the files of one folder.
 *
 * Loaded with LD_PRELOAD. Of `every` calls on average, one is answered as an operating system may
 * answer it: fewer bytes than asked for, EINTR, EIO, ESTALE, and for what writes ENOSPC and EDQUOT.
 * The clock of the day can jump. `faults_set` begins and ends it; `faults_count` says how many
 * there were of each kind.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { SHORT, INTR, IO, NOSPC, DQUOT, STALE, KINDS };
static const int numbers[KINDS] = {0, EINTR, EIO, ENOSPC, EDQUOT, ESTALE};

static char folder[4096];
static atomic_uint every;
static atomic_ulong state = 88172645463325252UL;
static atomic_ulong counts[KINDS];
static atomic_long jump;

void faults_set(const char *where, unsigned one_in, unsigned long seed) {
    atomic_store(&every, 0);
    snprintf(folder, sizeof folder, "%s", where);
    atomic_store(&state, seed * 2862933555777941757UL + 3037000493UL);
    atomic_store(&every, one_in);
}
unsigned long faults_count(int kind) { return atomic_load(&counts[kind]); }
void faults_clock(long seconds) { atomic_store(&jump, seconds); }

static unsigned long drawn(void) {
    unsigned long x = atomic_fetch_add(&state, 0x9E3779B97F4A7C15UL);
    x ^= x >> 30; x *= 0xBF58476D1CE4E5B9UL; x ^= x >> 27; x *= 0x94D049BB133111EBUL;
    return x ^ (x >> 31);
}
static int is_inside(const char *path) { return strncmp(path, folder, strlen(folder)) == 0; }

/* The kind of the fault of this call, or -1. */
static int fault(int fd, const char *path, unsigned kinds) {
    unsigned one_in = atomic_load(&every);
    if (!one_in || drawn() % one_in) return -1;
    char name[64], target[4096];
    if (path == NULL) {
        snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(name, target, sizeof target - 1);
        if (length < 0) return -1;
        target[length] = 0;
        path = target;
    }
    if (!is_inside(path)) return -1;
    int kind = drawn() % KINDS;
    while (!(kinds & (1u << kind))) kind = (kind + 1) % KINDS;
    atomic_fetch_add(&counts[kind], 1);
    return kind;
}

#define READS (1u << SHORT | 1u << INTR | 1u << IO | 1u << STALE)
#define WRITES (READS | 1u << NOSPC | 1u << DQUOT)
#define NOT_SHORT(kinds) ((kinds) & ~(1u << SHORT))
#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)
#define TRY(fd, path, kinds, shorter) do { \
        int kind = fault(fd, path, kinds); \
        if (kind == SHORT) { shorter; } \
        else if (kind >= 0) { errno = numbers[kind]; return -1; } \
    } while (0)
#define HALF(n) if ((n) > 1) (n) = (n) / 2

ssize_t read(int fd, void *to, size_t n) { REAL(read); TRY(fd, NULL, READS, HALF(n)); return real(fd, to, n); }
ssize_t write(int fd, const void *of, size_t n) { REAL(write); TRY(fd, NULL, WRITES, HALF(n)); return real(fd, of, n); }
#define AT(name, type, kinds) ssize_t name(int fd, type p, size_t n, off_t at) { \
        REAL(name); TRY(fd, NULL, kinds, HALF(n)); return real(fd, p, n, at); }
AT(pread, void *, READS)
AT(pread64, void *, READS)
AT(pwrite, const void *, WRITES)
AT(pwrite64, const void *, WRITES)
#define VECTOR(name, kinds) ssize_t name(int fd, const struct iovec *v, int n, off_t at) { \
        REAL(name); struct iovec one; \
        TRY(fd, NULL, kinds, if (n > 1) n = n / 2; else if (n == 1 && v->iov_len > 1) { \
            one = *v; one.iov_len /= 2; v = &one; }); \
        return real(fd, v, n, at); }
VECTOR(preadv, READS)
VECTOR(preadv64, READS)
int fsync(int fd) { REAL(fsync); TRY(fd, NULL, NOT_SHORT(WRITES), (void)0); return real(fd); }
int ftruncate(int fd, off_t n) { REAL(ftruncate); TRY(fd, NULL, NOT_SHORT(WRITES), (void)0); return real(fd, n); }
int rename(const char *old, const char *new) {
    REAL(rename); TRY(0, new, 1u << IO | 1u << STALE | 1u << NOSPC | 1u << DQUOT, (void)0); return real(old, new);
}
#define OPEN(name) int name(const char *path, int flags, ...) { \
        REAL(name); va_list rest; va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; va_end(rest); \
        TRY(0, path, 1u << INTR | 1u << IO | 1u << STALE, (void)0); return real(path, flags, mode); }
OPEN(open)
OPEN(open64)

int clock_gettime(clockid_t which, struct timespec *now) {
    REAL(clock_gettime);
    int result = real(which, now);
    if (which == CLOCK_REALTIME) now->tv_sec += atomic_load(&jump);
    return result;
}
