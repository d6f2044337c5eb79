/* A file system that refuses: loaded before the C library, it makes calls fail with a given errno.
 *
 * DISTRAIN_NO_LOCKS=ERRNO  record locks and flock fail, as on Lustre without flock or NFS without lockd.
 * DISTRAIN_REFUSE=ERRNO    while the file DISTRAIN_REFUSE_WHILE exists, files below the folder DISTRAIN_REFUSE_BELOW can
 *                          neither be opened for writing nor written, made, renamed or deleted.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static int is_refused(const char *path) {
    const char *below = getenv("DISTRAIN_REFUSE_BELOW"), *as_long_as = getenv("DISTRAIN_REFUSE_WHILE");
    if (!below || !as_long_as || !path || strncmp(path, below, strlen(below)) || access(as_long_as, F_OK)) return 0;
    errno = atoi(getenv("DISTRAIN_REFUSE"));
    return 1;
}

static int is_refused_file(int file) {
    char link[64], path[4096];
    if (!getenv("DISTRAIN_REFUSE_BELOW")) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_refused(path);
}

static int lock(const char *name, int file, int command, void *argument) {
    int (*real)(int, int, ...) = (int (*)(int, int, ...))dlsym(RTLD_NEXT, name);
    const char *refused = getenv("DISTRAIN_NO_LOCKS");
    int is_lock = command == F_SETLK || command == F_SETLKW || command == F_GETLK || command == F_OFD_SETLK ||
                  command == F_OFD_SETLKW || command == F_OFD_GETLK;
    if (refused && is_lock) { errno = atoi(refused); return -1; }
    return real(file, command, argument);
}

int fcntl(int file, int command, ...) {
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    return lock("fcntl", file, command, argument);
}

int fcntl64(int file, int command, ...) {
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    return lock("fcntl64", file, command, argument);
}

int flock(int file, int operation) {
    REAL(flock);
    if (getenv("DISTRAIN_NO_LOCKS")) { errno = atoi(getenv("DISTRAIN_NO_LOCKS")); return -1; }
    return real(file, operation);
}

static int open_any(const char *name, const char *path, int flags, mode_t mode) {
    int (*real)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, name);
    if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && is_refused(path)) return -1;
    return real(path, flags, mode);
}

int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, int);
    va_end(rest);
    return open_any("open", path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, int);
    va_end(rest);
    return open_any("open64", path, flags, mode);
}

ssize_t write(int file, const void *bytes, size_t count) {
    REAL(write);
    return is_refused_file(file) ? -1 : real(file, bytes, count);
}

ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t offset) {
    REAL(pwrite64);
    return is_refused_file(file) ? -1 : real(file, bytes, count, offset);
}

int ftruncate64(int file, off64_t length) {
    REAL(ftruncate64);
    return is_refused_file(file) ? -1 : real(file, length);
}

int fsync(int file) {
    REAL(fsync);
    return is_refused_file(file) ? -1 : real(file);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    return is_refused(path) ? -1 : real(path, mode);
}

int unlink(const char *path) {
    REAL(unlink);
    return is_refused(path) ? -1 : real(path);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    return is_refused(from) || is_refused(to) ? -1 : real(from, to);
}
