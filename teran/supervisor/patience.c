/* Has Triton wait for a model's process for as long as that lives. Preloaded into tritonserver.
 *
 * Its Python backend gives an execution up when the process has not stirred for a second, as after a
 * pause of the virtual machine, a step of the clock, or on a host that swaps. But the process goes
 * on, and what it answers then is taken for the answer to the next execution, out of memory that has
 * been given back: callers get empty answers, or those of others, and the server crashes. So the
 * waits of that library which last a second begin again while no process has died.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

/* Longer waits are for a process that starts, and end as they are meant to. */
static const time_t LONGEST = 2;

static bool is_short(const struct timespec *deadline)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return deadline->tv_sec - now.tv_sec <= LONGEST;
}

static bool is_backend(void *caller)
{
    Dl_info info;
    return dladdr(caller, &info) && info.dli_fname && strstr(info.dli_fname, "libtriton_python");
}

/* Triton collects a process that has died when it unloads the model: until then it shows here. */
static bool has_dead_child(void)
{
    siginfo_t child = {0};
    return waitid(P_ALL, 0, &child, WEXITED | WNOHANG | WNOWAIT) == 0 && child.si_pid;
}

static bool wait_again(void *caller, struct timespec *deadline)
{
    if (!is_backend(caller) || has_dead_child()) {
        return false;
    }
    clock_gettime(CLOCK_REALTIME, deadline);
    deadline->tv_sec += 1;
    return true;
}

int sem_timedwait(sem_t *semaphore, const struct timespec *deadline)
{
    int (*wait)(sem_t *, const struct timespec *) = dlsym(RTLD_NEXT, "sem_timedwait");
    bool again = is_short(deadline);
    struct timespec later;
    while (wait(semaphore, deadline)) {
        if (errno != ETIMEDOUT) {
            return -1;
        }
        if (!again || !wait_again(__builtin_return_address(0), &later)) {
            errno = ETIMEDOUT;
            return -1;
        }
        deadline = &later;
    }
    return 0;
}

int pthread_mutex_timedlock(pthread_mutex_t *mutex, const struct timespec *deadline)
{
    int (*lock)(pthread_mutex_t *, const struct timespec *) =
        dlsym(RTLD_NEXT, "pthread_mutex_timedlock");
    bool again = is_short(deadline);
    struct timespec later;
    int error;
    while ((error = lock(mutex, deadline)) == ETIMEDOUT && again
           && wait_again(__builtin_return_address(0), &later)) {
        deadline = &later;
    }
    return error;
}
