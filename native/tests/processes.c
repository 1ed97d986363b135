/* What processes do with the library: fork, exit while a thread runs, unload it, send messages to a log.
 *
 * Usage: processes TEST BUNDLE [LIBRARY or MILLISECONDS]
 */
#define _POSIX_C_SOURCE 200809L
#include <dlfcn.h>
#include <pthread.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

static fgclip_error error = FGCLIP_ERROR_INIT;

static void embed(fgclip_context *context, uint32_t dim) {
    const char *texts[] = {"a cat"};
    float *out = malloc(dim * sizeof *out);
    CHECK(out != NULL);
    ANSWERS(FGCLIP_OK, fgclip_embed_texts(context, texts, 1, NULL, out, dim, &error));
    free(out);
}

static fgclip_context *open_bundle(const char *bundle, fgclip_model **model, uint32_t *dim) {
    fgclip_context *context;
    ANSWERS(FGCLIP_OK, fgclip_model_open(bundle, NULL, model, &error));
    ANSWERS(FGCLIP_OK, fgclip_context_new(*model, &context, &error));
    ANSWERS(FGCLIP_OK, fgclip_model_dim(*model, dim, &error));
    return context;
}

/* A child of a process that has opened a model is refused, and may close what it inherited; one that was forked before
 * may open a model. */
static void test_fork(const char *bundle) {
    fgclip_model *model, *other = NULL;
    fgclip_context *context;
    uint32_t dim;
    int state;
    pid_t child = fork();
    CHECK(child >= 0);
    context = open_bundle(bundle, &model, &dim);
    embed(context, dim);
    if (child == 0) {
        exit(0);
    }
    CHECK(waitpid(child, &state, 0) == child && WIFEXITED(state) && WEXITSTATUS(state) == 0);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        const char *texts[] = {"a cat"};
        float out[1];
        ANSWERS(FGCLIP_FORKED, fgclip_embed_texts(context, texts, 1, NULL, out, 1, &error));
        CHECK(strstr(error.message, "after the fork") != NULL);
        ANSWERS(FGCLIP_FORKED, fgclip_model_open(bundle, NULL, &other, &error));
        ANSWERS(FGCLIP_FORKED, fgclip_model_dim(model, &dim, &error));
        fgclip_context_free(context);
        fgclip_model_close(model);
        exit(0);
    }
    CHECK(waitpid(child, &state, 0) == child && WIFEXITED(state) && WEXITSTATUS(state) == 0);
    embed(context, dim);
    fgclip_context_free(context);
    fgclip_model_close(model);
}

struct job {
    fgclip_context *context;
    fgclip_image image;
    uint32_t dim;
    size_t rounds;
    int32_t status;
};

static void *work(void *given) {
    struct job *job = given;
    float *out = malloc(job->dim * sizeof *out);
    size_t round;
    CHECK(out != NULL);
    for (round = 0; round < job->rounds && job->status == 0; round++) {
        job->status = fgclip_embed_images(job->context, &job->image, 1, NULL, out, job->dim, NULL);
    }
    free(out);
    return NULL;
}

static void wait_a_moment(long milliseconds) {
    struct timespec time = {0, 0};
    time.tv_nsec = milliseconds * 1000000;
    nanosleep(&time, NULL);
}

/* The process ends while another thread is in a call, which opens a graph or runs it. */
static void test_exit(const char *bundle, long milliseconds) {
    static struct job job;
    fgclip_model *model;
    pthread_t thread;
    job.context = open_bundle(bundle, &model, &job.dim);
    job.image = picture(300, 200, 4);
    job.rounds = SIZE_MAX;
    CHECK(pthread_create(&thread, NULL, work, &job) == 0);
    wait_a_moment(milliseconds);
    exit(0);
}

/* Another thread ends a call, and the calls after it, until the context is reset. */
static void test_cancel(const char *bundle) {
    struct job job = {0};
    fgclip_model *model;
    pthread_t thread;
    job.context = open_bundle(bundle, &model, &job.dim);
    job.image = picture(300, 200, 4);
    job.rounds = SIZE_MAX;
    CHECK(pthread_create(&thread, NULL, work, &job) == 0);
    wait_a_moment(200);
    ANSWERS(FGCLIP_OK, fgclip_context_cancel(job.context, &error));
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(job.status == FGCLIP_CANCELLED);
    job.status = 0;
    work(&job);
    CHECK(job.status == FGCLIP_CANCELLED);
    ANSWERS(FGCLIP_OK, fgclip_context_reset(job.context, &error));
    embed(job.context, job.dim);
    free((void *)job.image.data);
    fgclip_context_free(job.context);
    fgclip_model_close(model);
}

/* A context that is in use refuses a second call. */
static void test_busy(const char *bundle) {
    struct job job = {0};
    fgclip_model *model;
    pthread_t thread;
    int refused = 0, round;
    const char *texts[] = {"a cat"};
    float *out;
    job.context = open_bundle(bundle, &model, &job.dim);
    job.image = picture(300, 200, 4);
    job.rounds = SIZE_MAX;
    out = malloc(job.dim * sizeof *out);
    CHECK(out != NULL);
    CHECK(pthread_create(&thread, NULL, work, &job) == 0);
    for (round = 0; round < 1000 && !refused; round++) {
        refused = fgclip_embed_texts(job.context, texts, 1, NULL, out, job.dim, &error) == FGCLIP_ARGUMENT_INVALID &&
                  strstr(error.message, "two threads at once") != NULL;
        wait_a_moment(1);
    }
    ANSWERS(FGCLIP_OK, fgclip_context_cancel(job.context, &error));
    CHECK(pthread_join(thread, NULL) == 0);
    /* If this thread came first, the other was refused. */
    CHECK(refused || job.status == FGCLIP_ARGUMENT_INVALID);
    free(out);
    free((void *)job.image.data);
    fgclip_context_free(job.context);
    fgclip_model_close(model);
}

/* A library that is opened and closed again and again, by its path. */
static void test_dlclose(const char *bundle, const char *library) {
    typedef int32_t (*opener)(const char *, const fgclip_options *, fgclip_model **, fgclip_error *);
    typedef void (*closer)(fgclip_model *);
    int round;
    for (round = 0; round < 3; round++) {
        void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
        opener open;
        closer close;
        fgclip_model *model;
        CHECK(handle != NULL);
        *(void **)&open = dlsym(handle, "fgclip_model_open");
        *(void **)&close = dlsym(handle, "fgclip_model_close");
        CHECK(open != NULL && close != NULL);
        CHECK(open(bundle, NULL, &model, NULL) == 0);
        close(model);
        CHECK(dlclose(handle) == 0);
    }
}

static int messages = 0;

static void count(void *user, int32_t severity, const char *message) {
    CHECK(user == &messages && severity >= 2 && strlen(message) > 0);
    messages++;
}

/* onnxruntime's messages go to the log, and nowhere else. The second argument is a bundle with a damaged graph. */
static void test_log(const char *bundle) {
    fgclip_options options = FGCLIP_OPTIONS_INIT;
    fgclip_model *model;
    ANSWERS(FGCLIP_OK, fgclip_set_log(count, &messages, &error));
    options.check = FGCLIP_CHECK_SIZES;
    ANSWERS(FGCLIP_OK, fgclip_model_open(bundle, &options, &model, &error));
    ANSWERS(FGCLIP_BUNDLE_INVALID, fgclip_model_warm(model, FGCLIP_GRAPH_TEXT, &error));
    ANSWERS(FGCLIP_OK, fgclip_set_log(NULL, NULL, &error));
    fgclip_model_close(model);
}

int main(int argc, char **argv) {
    CHECK(argc >= 3);
    if (strcmp(argv[1], "fork") == 0) {
        test_fork(argv[2]);
    } else if (strcmp(argv[1], "exit") == 0) {
        CHECK(argc == 4);
        test_exit(argv[2], strtol(argv[3], NULL, 10));
    } else if (strcmp(argv[1], "cancel") == 0) {
        test_cancel(argv[2]);
    } else if (strcmp(argv[1], "busy") == 0) {
        test_busy(argv[2]);
    } else if (strcmp(argv[1], "log") == 0) {
        test_log(argv[2]);
    } else {
        CHECK(strcmp(argv[1], "dlclose") == 0 && argc == 4);
        test_dlclose(argv[2], argv[3]);
    }
    return 0;
}
