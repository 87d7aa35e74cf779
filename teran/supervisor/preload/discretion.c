/* Keeps the names of Triton's shared memory from clients. Preloaded into tritonserver.
 *
 * Where /dev/shm is full, the Python backend names its region in the error that the caller gets. In
 * Triton before 25.07 whoever knows that name, and may register shared memory, reads and writes what
 * the server and its models tell one another (CVE-2025-23320).
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

static const char PREFIX[] = "teran-"; /* with the supervisor's pid: SHM_NAME in host.py */

static void hide_names(char *text)
{
    while ((text = strstr(text, PREFIX))) {
        text += sizeof PREFIX - 1;
        if (isdigit((unsigned char)*text)) {
            while (isalnum((unsigned char)*text) || (*text && strchr("-_", *text))) {
                *text++ = '*';
            }
        }
    }
}

/* What every backend makes its errors with: tritonserver.h has its types. */
void *TRITONSERVER_ErrorNew(int code, const char *message)
{
    void *(*make)(int, const char *) = dlsym(RTLD_NEXT, "TRITONSERVER_ErrorNew");
    char *text = strdup(message);
    if (!text) {
        return make(code, "no memory is left");
    }
    hide_names(text);
    void *error = make(code, text);
    free(text);
    return error;
}
