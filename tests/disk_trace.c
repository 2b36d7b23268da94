/* Writes down what a process does to the files below one folder, in order, with the data: the disk as a sequence.

   Loaded into the process by LD_PRELOAD; `tests/crashes.py` builds it, reads the trace, and plays it back with power
   cuts. Environment: TRACE_ROOT (the folder), TRACE_LOG (where to write). A record is
   struct record, then `size_one` and `size_two` bytes. Shared memory of SQLite (`-shm`) is no part of the disk.

   `disk_fails` lets the disk refuse: of the writes, syncs, truncations and new files from now on, `after` still work,
   then `count` fail with `error`. It returns how many were refused since it was last called.

   `disk_kills` kills the process with signal 9 after so many more things done; with `no_exchange` the file system is
   one that cannot exchange two names. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define FILES 65536

struct record {
    char kind;
    char pad[3];
    int32_t file;
    int64_t offset;
    uint32_t size_one;
    uint32_t size_two;
};

static pthread_mutex_t order = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static char root[PATH_MAX];
static size_t root_size;
static int out = -1;
static char traced[FILES]; /* by file descriptor */

static int fail_after = -1, fail_count, fail_error, refused;
static int kill_after = -1, cannot_exchange;

void disk_kills(int after, int no_exchange) {
    pthread_mutex_lock(&order);
    kill_after = after, cannot_exchange = no_exchange;
    pthread_mutex_unlock(&order);
}

int disk_fails(int after, int count, int error) {
    pthread_mutex_lock(&order);
    int before = refused;
    fail_after = after, fail_count = count, fail_error = error, refused = 0;
    pthread_mutex_unlock(&order);
    return before;
}

static int refuses(void) {
    if (fail_after < 0) return 0;
    if (fail_after > 0) return fail_after--, 0;
    if (fail_count == 0) return 0;
    fail_count--, refused++;
    errno = fail_error;
    return 1;
}

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) real = dlsym(RTLD_NEXT, #name)

static void all(const void *bytes, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    for (const char *at = bytes; size;) {
        ssize_t done = real(out, at, size);
        if (done < 0) _exit(99);
        at += done;
        size -= (size_t)done;
    }
}

static void note(char kind, int file, int64_t offset, const void *one, size_t size_one, const char *two) {
    int before = errno;
    struct record record = {kind, {0}, file, offset, (uint32_t)size_one, two ? (uint32_t)strlen(two) : 0};
    all(&record, sizeof record);
    all(one, size_one);
    if (two) all(two, strlen(two));
    if (kill_after > 0 && !--kill_after) kill(getpid(), SIGKILL);
    errno = before;
}

static void note_path(char kind, int file, int64_t offset, const char *path) {
    note(kind, file, offset, path, strlen(path), NULL);
}

/* Writes the absolute path to `whole`; returns whether it is below the root and part of the disk. */
static int below(int folder, const char *path, char *whole) {
    if (out < 0) return 0;
    if (path[0] == '/') {
        snprintf(whole, PATH_MAX, "%s", path);
    } else if (folder == AT_FDCWD) {
        if (!getcwd(whole, PATH_MAX)) return 0;
        size_t used = strlen(whole);
        snprintf(whole + used, PATH_MAX - used, "/%s", path);
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t used = readlink(link, whole, PATH_MAX - 1);
        if (used < 0) return 0;
        snprintf(whole + used, (size_t)(PATH_MAX - used), "/%s", path);
    }
    size_t size = strlen(whole);
    if (strncmp(whole, root, root_size) || (whole[root_size] && whole[root_size] != '/')) return 0;
    return size < 4 || strcmp(whole + size - 4, "-shm");
}

__attribute__((constructor)) static void start(void) {
    const char *where = getenv("TRACE_LOG"), *what = getenv("TRACE_ROOT");
    if (!where || !what) return;
    snprintf(root, sizeof root, "%s", what);
    root_size = strlen(root);
    out = open(where, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (out < 0) _exit(98);
}

static int opened(int file, int folder, const char *path, int flags, int was_there) {
    char whole[PATH_MAX];
    if (file >= 0 && file < FILES) {
        traced[file] = (char)below(folder, path, whole);
        if (traced[file]) note_path('o', file, (was_there ? 0 : 1) | (flags & O_TRUNC ? 2 : 0), whole);
    }
    return file;
}

static int open_any(int folder, const char *path, int flags, mode_t mode) {
    REAL(int, openat, int, const char *, int, ...);
    struct stat there;
    pthread_mutex_lock(&order);
    int was_there = fstatat(folder, path, &there, 0) == 0;
    char whole[PATH_MAX];
    if (!was_there && (flags & O_CREAT) && below(folder, path, whole) && refuses()) {
        pthread_mutex_unlock(&order);
        return -1;
    }
    int file = opened(real(folder, path, flags, mode), folder, path, flags, was_there);
    pthread_mutex_unlock(&order);
    return file;
}

#define MODE \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { \
        va_list more; \
        va_start(more, flags); \
        mode = va_arg(more, mode_t); \
        va_end(more); \
    }

int open(const char *path, int flags, ...) { MODE return open_any(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return open_any(AT_FDCWD, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE return open_any(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE return open_any(folder, path, flags, mode); }

int close(int file) {
    REAL(int, close, int);
    pthread_mutex_lock(&order);
    if (file >= 0 && file < FILES && traced[file]) {
        traced[file] = 0;
        note('c', file, 0, "", 0, NULL);
    }
    int result = real(file);
    pthread_mutex_unlock(&order);
    return result;
}

ssize_t write(int file, const void *bytes, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    if (file < 0 || file >= FILES || !traced[file]) return real(file, bytes, size);
    pthread_mutex_lock(&order);
    ssize_t done = refuses() ? -1 : real(file, bytes, size);
    if (done > 0) note('w', file, lseek(file, 0, SEEK_CUR) - done, bytes, (size_t)done, NULL);
    pthread_mutex_unlock(&order);
    return done;
}

static ssize_t pwrite_any(int file, const void *bytes, size_t size, off_t offset) {
    REAL(ssize_t, pwrite64, int, const void *, size_t, off_t);
    if (file < 0 || file >= FILES || !traced[file]) return real(file, bytes, size, offset);
    pthread_mutex_lock(&order);
    ssize_t done = refuses() ? -1 : real(file, bytes, size, offset);
    if (done > 0) note('w', file, offset, bytes, (size_t)done, NULL);
    pthread_mutex_unlock(&order);
    return done;
}

ssize_t pwrite(int file, const void *bytes, size_t size, off_t at) { return pwrite_any(file, bytes, size, at); }
ssize_t pwrite64(int file, const void *bytes, size_t size, off_t at) { return pwrite_any(file, bytes, size, at); }

static int truncate_any(int file, off_t size) {
    REAL(int, ftruncate64, int, off_t);
    pthread_mutex_lock(&order);
    int mine = file >= 0 && file < FILES && traced[file];
    int result = mine && refuses() ? -1 : real(file, size);
    if (!result && mine) note('t', file, size, "", 0, NULL);
    pthread_mutex_unlock(&order);
    return result;
}

int ftruncate(int file, off_t size) { return truncate_any(file, size); }
int ftruncate64(int file, off_t size) { return truncate_any(file, size); }

#define SYNC(name) \
    int name(int file) { \
        REAL(int, name, int); \
        pthread_mutex_lock(&order); \
        int mine = file >= 0 && file < FILES && traced[file]; \
        int result = mine && refuses() ? -1 : real(file); \
        if (!result && mine) note('s', file, 0, "", 0, NULL); \
        pthread_mutex_unlock(&order); \
        return result; \
    }
SYNC(fsync)
SYNC(fdatasync)

static int rename_any(int one, const char *from, int two, const char *to) {
    REAL(int, renameat, int, const char *, int, const char *);
    char source[PATH_MAX], target[PATH_MAX];
    pthread_mutex_lock(&order);
    int here = below(one, from, source) | (below(two, to, target) << 1);
    int result = real(one, from, two, to);
    if (!result && here == 3) note('r', -1, 0, source, strlen(source), target);
    pthread_mutex_unlock(&order);
    return result;
}

int rename(const char *from, const char *to) { return rename_any(AT_FDCWD, from, AT_FDCWD, to); }
int renameat(int one, const char *from, int two, const char *to) { return rename_any(one, from, two, to); }

int renameat2(int one, const char *from, int two, const char *to, unsigned flags) {
    REAL(int, renameat2, int, const char *, int, const char *, unsigned);
    char source[PATH_MAX], target[PATH_MAX];
    if (cannot_exchange) return errno = EINVAL, -1;
    pthread_mutex_lock(&order);
    int here = below(one, from, source) | (below(two, to, target) << 1);
    int result = real(one, from, two, to, flags);
    if (!result && here == 3) note(flags == RENAME_EXCHANGE ? 'x' : 'r', -1, 0, source, strlen(source), target);
    pthread_mutex_unlock(&order);
    return result;
}

static int unlink_any(int folder, const char *path, int flags) {
    REAL(int, unlinkat, int, const char *, int);
    char whole[PATH_MAX];
    pthread_mutex_lock(&order);
    int here = below(folder, path, whole);
    int result = real(folder, path, flags);
    if (!result && here) note_path('u', -1, 0, whole);
    pthread_mutex_unlock(&order);
    return result;
}

int unlink(const char *path) { return unlink_any(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlink_any(AT_FDCWD, path, AT_REMOVEDIR); }
int unlinkat(int folder, const char *path, int flags) { return unlink_any(folder, path, flags); }

static int mkdir_any(int folder, const char *path, mode_t mode) {
    REAL(int, mkdirat, int, const char *, mode_t);
    char whole[PATH_MAX];
    pthread_mutex_lock(&order);
    int result = real(folder, path, mode);
    if (!result && below(folder, path, whole)) note_path('m', -1, 0, whole);
    pthread_mutex_unlock(&order);
    return result;
}

int mkdir(const char *path, mode_t mode) { return mkdir_any(AT_FDCWD, path, mode); }
int mkdirat(int folder, const char *path, mode_t mode) { return mkdir_any(folder, path, mode); }

int symlink(const char *to, const char *path) {
    REAL(int, symlink, const char *, const char *);
    char whole[PATH_MAX];
    pthread_mutex_lock(&order);
    int result = real(to, path);
    if (!result && below(AT_FDCWD, path, whole)) note('l', -1, 0, whole, strlen(whole), to);
    pthread_mutex_unlock(&order);
    return result;
}

/* Python copies files by these where it can; without them it reads and writes. */
ssize_t sendfile(int to, int from, off_t *at, size_t size) {
    (void)to, (void)from, (void)at, (void)size;
    errno = ENOSYS;
    return -1;
}
ssize_t sendfile64(int to, int from, off_t *at, size_t size) { return sendfile(to, from, at, size); }
ssize_t copy_file_range(int from, off_t *one, int to, off_t *two, size_t size, unsigned flags) {
    (void)from, (void)one, (void)to, (void)two, (void)size, (void)flags;
    errno = ENOSYS;
    return -1;
}
