/* A libonnxruntime that fails when it is told to: the real one, with a few of its functions in front.
 *
 * FGCLIP_RT_TEST_REAL names the real library. FGCLIP_RT_TEST_FAULT is looked up at each call:
 *     "providers"           a CUDA provider is listed, which is not there
 *     "PLACE CODE MESSAGE"  a function fails so: PLACE is "run-options", "session" or "run"
 */
#define _POSIX_C_SOURCE 200809L
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void (*function)(void);
typedef void *(*create_status)(int32_t code, const char *message);
typedef void *(*get_providers)(char ***names, int32_t *count);
typedef void *(*release_providers)(char **names, int32_t count);
typedef void *(*create_run_options)(void **options);
typedef void *(*create_session)(void *env, const void *data, size_t size, const void *options, void **session);
typedef void *(*create_session_with_weights)(void *env, const void *data, size_t size, const void *options,
                                             void *container, void **session);
typedef void *(*run_session)(void *session, const void *options, const char *const *names, const void *const *inputs,
                             size_t count, const char *const *output_names, size_t output_count, void **outputs);

/* Places in onnxruntime's table of functions, which never change; the table has more in every version. */
enum {
    CREATE_STATUS = 0,
    CREATE_SESSION = 8,
    RUN = 9,
    CREATE_RUN_OPTIONS = 39,
    GET_PROVIDERS = 125,
    RELEASE_PROVIDERS = 126,
    CREATE_SESSION_WITH_WEIGHTS = 169,
    FUNCTIONS = 318 /* of version 22 */
};

struct base {
    const function *(*get_api)(uint32_t version);
    const char *(*get_version)(void);
};

static const struct base *real_base;
static const function *real;
static function table[FUNCTIONS];
static char *names_with_cuda[] = {"CUDAExecutionProvider", "CPUExecutionProvider"};

/* The status that a place is told to fail with; NULL if it is not. */
static void *fault(const char *place) {
    const char *told = getenv("FGCLIP_RT_TEST_FAULT");
    char name[16];
    int code, begin;
    if (told == NULL || sscanf(told, "%15s %d %n", name, &code, &begin) != 2 || strcmp(name, place) != 0) {
        return NULL;
    }
    return ((create_status)real[CREATE_STATUS])(code, told + begin);
}

static void *list_providers(char ***names, int32_t *count) {
    const char *told = getenv("FGCLIP_RT_TEST_FAULT");
    if (told == NULL || strcmp(told, "providers") != 0) {
        return ((get_providers)real[GET_PROVIDERS])(names, count);
    }
    *names = names_with_cuda;
    *count = 2;
    return NULL;
}

static void *release_list(char **names, int32_t count) {
    return names == names_with_cuda ? NULL : ((release_providers)real[RELEASE_PROVIDERS])(names, count);
}

static void *make_run_options(void **options) {
    void *failed = fault("run-options");
    return failed ? failed : ((create_run_options)real[CREATE_RUN_OPTIONS])(options);
}

static void *open_session(void *env, const void *data, size_t size, const void *options, void **session) {
    void *failed = fault("session");
    return failed ? failed : ((create_session)real[CREATE_SESSION])(env, data, size, options, session);
}

static void *open_with_weights(void *env, const void *data, size_t size, const void *options, void *container,
                               void **session) {
    void *failed = fault("session");
    create_session_with_weights open = (create_session_with_weights)real[CREATE_SESSION_WITH_WEIGHTS];
    return failed ? failed : open(env, data, size, options, container, session);
}

static void *run(void *session, const void *options, const char *const *names, const void *const *inputs,
                 size_t count, const char *const *output_names, size_t output_count, void **outputs) {
    void *failed = fault("run");
    run_session go = (run_session)real[RUN];
    return failed ? failed : go(session, options, names, inputs, count, output_names, output_count, outputs);
}

static const function *get_api(uint32_t version) {
    real = real_base->get_api(version);
    if (real == NULL) {
        return NULL;
    }
    memcpy(table, real, sizeof table);
    table[GET_PROVIDERS] = (function)list_providers;
    table[RELEASE_PROVIDERS] = (function)release_list;
    table[CREATE_RUN_OPTIONS] = (function)make_run_options;
    table[CREATE_SESSION] = (function)open_session;
    table[CREATE_SESSION_WITH_WEIGHTS] = (function)open_with_weights;
    table[RUN] = (function)run;
    return table;
}

static const char *get_version(void) {
    return real_base->get_version();
}

const struct base *OrtGetApiBase(void) {
    static const struct base base = {get_api, get_version};
    const char *path = getenv("FGCLIP_RT_TEST_REAL");
    void *library = path == NULL ? NULL : dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const struct base *(*get)(void);
    if (library == NULL) {
        return NULL;
    }
    *(void **)&get = dlsym(library, "OrtGetApiBase");
    real_base = get();
    return &base;
}
