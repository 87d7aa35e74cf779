/*
 * A disk that can lose its power, or be full: preloaded into a process, it watches a directory.
 *
 * What the process syncs below DISK_ROOT is written to DISK_SHADOW as well, so that the directory
 * can be made again as a loss of power may leave it (tests/faults/disk.py does that):
 *
 *     <key>.data    the bytes of a file that were synced, for synced ranges of a mapping just those
 *     <key>.names   the names in a directory when it was synced, with their keys
 *
 * A key is an inode and the moment of its birth. `disk_fill(n, m)` lets the nth call from now that
 * takes room below DISK_ROOT fail for want of it, and m - 1 after it. `disk_cut(n)` kills the process
 * at the nth call from now that takes room there or syncs.
 */

#define _GNU_SOURCE
#include <dirent.h>
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
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic long calls, full_from, full_until, steps, cut_at;

void disk_fill(long from, long count)
{
    calls = 0;
    full_from = from;
    full_until = from + count;
}

/* Calls that took room, or would have, since `disk_fill`. */
long disk_calls(void) { return calls; }

void disk_cut(long at)
{
    steps = 0;
    cut_at = at;
}

/* Calls that took room or synced, since `disk_cut`. */
long disk_steps(void) { return steps; }

static void step(void)
{
    if (++steps == cut_at)
        raise(SIGKILL);
}

static int is_below(const char *path)
{
    const char *root = getenv("DISK_ROOT");
    size_t length = root ? strlen(root) : 0;
    return length && strncmp(path, root, length) == 0 && (path[length] == '/' || !path[length]);
}

static int path_of(int fd, char path[PATH_MAX])
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return is_below(path);
}

/* Whether there is no room for one more call. */
static int is_full(void)
{
    step();
    long call = ++calls;
    return full_from <= call && call < full_until;
}

static int no_room(int fd)
{
    char path[PATH_MAX];
    int saved = errno;
    int full = path_of(fd, path) && is_full();
    errno = full ? ENOSPC : saved;
    return full;
}

static int no_room_at(const char *path)
{
    char whole[PATH_MAX];
    if (path[0] != '/') {
        if (!getcwd(whole, sizeof whole) || strlen(whole) + strlen(path) + 2 > sizeof whole)
            return 0;
        path = strcat(strcat(whole, "/"), path);
    }
    int full = is_below(path) && is_full();
    if (full)
        errno = ENOSPC;
    return full;
}

/* The key of a file, which no later one has. */
int disk_key(const char *path, char *key, size_t size)
{
    struct statx found;
    if (statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_INO | STATX_BTIME, &found))
        return -1;
    snprintf(key, size, "%llu-%lld-%u", (unsigned long long)found.stx_ino,
             (long long)found.stx_btime.tv_sec, found.stx_btime.tv_nsec);
    return 0;
}

static int shadow_path(const char *path, const char *kind, char target[PATH_MAX])
{
    char key[80];
    const char *directory = getenv("DISK_SHADOW");
    if (!directory || disk_key(path, key, sizeof key))
        return 0;
    snprintf(target, PATH_MAX, "%s/%s.%s", directory, key, kind);
    return 1;
}

static int shadow(const char *path, const char *kind, int flags)
{
    char target[PATH_MAX];
    if (!shadow_path(path, kind, target))
        return -1;
    return REAL(open)(target, O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0644);
}

static void keep(int target, const char *bytes, size_t count, off_t offset)
{
    while (count) {
        ssize_t done = REAL(pwrite)(target, bytes, count, offset);
        if (done <= 0)
            abort();
        bytes += done, offset += done, count -= done;
    }
}

static void keep_file(const char *path)
{
    static char bytes[1 << 20];
    struct stat found;
    int source = REAL(open)(path, O_RDONLY | O_CLOEXEC), target = shadow(path, "data", 0);
    if (source < 0 || target < 0 || fstat(source, &found))
        goto done;
    for (off_t at = 0; (at = lseek(source, at, SEEK_DATA)) >= 0;) {
        off_t end = lseek(source, at, SEEK_HOLE);
        for (ssize_t got; at < end; at += got) {
            got = pread(source, bytes, sizeof bytes, at);
            if (got <= 0)
                goto done;
            keep(target, bytes, got, at);
        }
    }
    if (REAL(ftruncate)(target, found.st_size))
        abort();
done:
    if (source >= 0)
        close(source);
    if (target >= 0)
        close(target);
}

/* In one step, as a journal does: a process that is killed in between loses no older names. */
static void keep_names(const char *path)
{
    char written[PATH_MAX], names[PATH_MAX];
    DIR *directory = opendir(path);
    int target = shadow(path, "new", O_TRUNC);
    for (struct dirent *entry; directory && target >= 0 && (entry = readdir(directory));) {
        char whole[PATH_MAX + 256], key[80], line[400];
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        snprintf(whole, sizeof whole, "%s/%s", path, entry->d_name);
        if (disk_key(whole, key, sizeof key))
            continue;
        int length = snprintf(line, sizeof line, "%c %s %s\n",
                              entry->d_type == DT_DIR ? 'd' : 'f', key, entry->d_name);
        if (REAL(write)(target, line, length) != length)
            abort();
    }
    if (directory)
        closedir(directory);
    if (target >= 0) {
        close(target);
        shadow_path(path, "new", written);
        shadow_path(path, "names", names);
        if (REAL(rename)(written, names))
            abort();
    }
}

static void synced(int fd)
{
    char path[PATH_MAX];
    struct stat found;
    int saved = errno;
    if (getenv("DISK_SHADOW") && path_of(fd, path) && !fstat(fd, &found) && found.st_nlink) {
        step();
        pthread_mutex_lock(&lock);
        (S_ISDIR(found.st_mode) ? keep_names : keep_file)(path);
        pthread_mutex_unlock(&lock);
    }
    errno = saved;
}

int fsync(int fd)
{
    int result = REAL(fsync)(fd);
    if (!result)
        synced(fd);
    return result;
}

int fdatasync(int fd)
{
    int result = REAL(fdatasync)(fd);
    if (!result)
        synced(fd);
    return result;
}

/* What a mapping is of, and where in it an address is. */
static int mapped(uintptr_t address, char path[PATH_MAX], off_t *offset)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    char line[PATH_MAX + 200];
    int found = 0;
    while (maps && !found && fgets(line, sizeof line, maps)) {
        unsigned long start, end, from;
        path[0] = 0;
        if (sscanf(line, "%lx-%lx %*s %lx %*s %*s %4095[^\n]", &start, &end, &from, path) >= 3)
            found = start <= address && address < end;
        *offset = (off_t)(from + (address - start));
    }
    if (maps)
        fclose(maps);
    return found && is_below(path);
}

int msync(void *address, size_t length, int flags)
{
    int result = REAL(msync)(address, length, flags), saved = errno;
    char path[PATH_MAX];
    off_t offset;
    struct stat found;
    if (!result && flags & MS_SYNC && getenv("DISK_SHADOW")) {
        step();
        pthread_mutex_lock(&lock);
        if (mapped((uintptr_t)address, path, &offset) && !stat(path, &found)) {
            int target = shadow(path, "data", 0);
            off_t end = offset + (off_t)length < found.st_size ? offset + (off_t)length
                                                               : found.st_size;
            if (target >= 0) {
                if (end > offset)
                    keep(target, address, end - offset, offset);
                if (REAL(ftruncate)(target, found.st_size))
                    abort();
                close(target);
            }
        }
        pthread_mutex_unlock(&lock);
    }
    errno = saved;
    return result;
}

/* Calls that take room. */

ssize_t write(int fd, const void *bytes, size_t count)
{
    return no_room(fd) ? -1 : REAL(write)(fd, bytes, count);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    return no_room(fd) ? -1 : REAL(writev)(fd, parts, count);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset)
{
    return no_room(fd) ? -1 : REAL(pwrite64)(fd, bytes, count, offset);
}

ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags)
{
    return no_room(fd) ? -1 : REAL(pwritev2)(fd, parts, count, offset, flags);
}

int ftruncate64(int fd, off64_t length)
{
    struct stat found;
    int grows = !fstat(fd, &found) && length > found.st_size;
    return grows && no_room(fd) ? -1 : REAL(ftruncate64)(fd, length);
}

int rename(const char *from, const char *to)
{
    return no_room_at(to) ? -1 : REAL(rename)(from, to);
}

int mkdir(const char *path, mode_t mode)
{
    return no_room_at(path) ? -1 : REAL(mkdir)(path, mode);
}

static int makes(const char *path, int flags)
{
    return flags & O_CREAT && access(path, F_OK) && no_room_at(path);
}

int open(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return makes(path, flags) ? -1 : REAL(open)(path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return makes(path, flags) ? -1 : REAL(open64)(path, flags, mode);
}
