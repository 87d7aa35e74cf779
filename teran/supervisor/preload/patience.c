/* Has Triton wait for a model's process for as long as that lives, and no longer. Preloaded into
 * tritonserver.
 *
 * Its Python backend gives an execution up when the process has not stirred for a second, as after a
 * pause of the virtual machine, a step of the clock, or on a host that swaps. But the process goes
 * on, and what it answers then is taken for the answer to the next execution, out of memory that has
 * been given back: callers get empty answers, or those of others, and the server crashes. So where
 * that library's wait for a second ends, it begins again if the process is there.
 *
 * For a process that has died it waits that second too, with every batch that was left for it, so
 * that a long queue takes a minute to go. So a wait is looked at soon after it began as well.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static bool is_backend(void *caller)
{
    Dl_info info;
    return dladdr(caller, &info) && info.dli_fname && strstr(info.dli_fname, "libtriton_python");
}

/* What a thread last waited for: a model's shared memory, which no other has, and its process, once it
 * was seen. */
static __thread struct {
    unsigned long start, end;
    char region[256], pid[16];
} known;

static bool is_known(const void *address)
{
    return known.start <= (unsigned long)address && (unsigned long)address < known.end;
}

static bool find_region(const void *address)
{
    char line[1024], path[512];
    unsigned long start, end;
    bool found = false;
    FILE *maps = fopen("/proc/self/maps", "re");
    while (maps && !found && fgets(line, sizeof line, maps)) {
        found = sscanf(line, "%lx-%lx %*s %*s %*s %*s %511s", &start, &end, path) == 3
                && start <= (unsigned long)address && (unsigned long)address < end
                && strncmp(path, "/dev/shm/", 9) == 0 && strlen(path + 9) < sizeof known.region;
    }
    if (maps) {
        fclose(maps);
    }
    if (found) {
        known.start = start;
        known.end = end;
        strcpy(known.region, path + 9);
    }
    return found;
}

/* Whether a process has a word on its command line; of one that has died none is left. */
static bool names(const char *pid, const char *word)
{
    char path[300], line[16384];
    snprintf(path, sizeof path, "/proc/%s/cmdline", pid);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = file < 0 ? -1 : read(file, line, sizeof line);
    if (file >= 0) {
        close(file);
    }
    return size > 0 && memmem(line, size, word, strlen(word) + 1);
}

static bool find_process(void)
{
    bool found = false;
    struct dirent *entry;
    DIR *processes = opendir("/proc");
    while (processes && !found && (entry = readdir(processes))) {
        found = isdigit((unsigned char)entry->d_name[0]) && names(entry->d_name, known.region)
                && snprintf(known.pid, sizeof known.pid, "%s", entry->d_name) < 16;
    }
    if (processes) {
        closedir(processes);
    }
    return found;
}

/* What is to be said of the process that an address is shared with. One that nobody has seen may be
 * about to begin; one that was seen, and is not there, is dead. */
static enum state { NO_MODEL, UNSEEN, ALIVE, DEAD } look(const void *address, void *caller)
{
    char before[sizeof known.region] = "";
    if (!is_backend(caller)) {
        return NO_MODEL;
    }
    if (is_known(address) && known.pid[0]) {
        if (names(known.pid, known.region)) {
            return ALIVE;
        }
        strcpy(before, known.region);
    }
    if (!find_region(address)) {
        return NO_MODEL;
    }
    if (strcmp(before, known.region) == 0) {
        return DEAD;
    }
    known.pid[0] = 0;
    return find_process() ? ALIVE : UNSEEN;
}

static struct timespec after(long milliseconds)
{
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    time.tv_sec += milliseconds / 1000;
    time.tv_nsec += milliseconds % 1000 * 1000000;
    if (time.tv_nsec >= 1000000000) {
        time.tv_sec += 1;
        time.tv_nsec -= 1000000000;
    }
    return time;
}

static bool is_before(const struct timespec *one, const struct timespec *other)
{
    return one->tv_sec != other->tv_sec ? one->tv_sec < other->tv_sec
                                        : one->tv_nsec < other->tv_nsec;
}

/* Until when to wait at first. */
static struct timespec begin(const void *address, void *caller, const struct timespec *deadline)
{
    if (!is_known(address)) {
        look(address, caller);
    }
    struct timespec soon = after(50);
    return is_before(&soon, deadline) ? soon : *deadline;
}

/* Whether a wait that has ended at a time goes on, and until when. */
static bool go_on(const void *address, void *caller, const struct timespec *deadline,
                  struct timespec *until)
{
    enum state state = look(address, caller);
    if (state == ALIVE) {
        *until = after(1000);
        return true;
    }
    bool early = is_before(until, deadline);
    *until = *deadline;
    return early && state != DEAD;
}

int sem_timedwait(sem_t *semaphore, const struct timespec *deadline)
{
    int (*wait)(sem_t *, const struct timespec *) = dlsym(RTLD_NEXT, "sem_timedwait");
    struct timespec until = begin(semaphore, __builtin_return_address(0), deadline);
    while (wait(semaphore, &until)) {
        if (errno != ETIMEDOUT) {
            return -1;
        }
        if (!go_on(semaphore, __builtin_return_address(0), deadline, &until)) {
            errno = ETIMEDOUT;
            return -1;
        }
    }
    return 0;
}

int pthread_mutex_timedlock(pthread_mutex_t *mutex, const struct timespec *deadline)
{
    int (*lock)(pthread_mutex_t *, const struct timespec *) =
        dlsym(RTLD_NEXT, "pthread_mutex_timedlock");
    struct timespec until = begin(mutex, __builtin_return_address(0), deadline);
    int error;
    while ((error = lock(mutex, &until)) == ETIMEDOUT
           && go_on(mutex, __builtin_return_address(0), deadline, &until)) {
    }
    return error;
}
