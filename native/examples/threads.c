/* A pool of workers over one model. Requests wait in a short queue, and have a deadline: a request whose time is up is
 * dropped before it runs, and cancelled while it runs.
 *
 * Usage: threads BUNDLE WORKERS MILLISECONDS IMAGE.ppm...
 *
 * Each image is a request, which may take MILLISECONDS from its arrival in the queue. Several calls at once use cores
 * better than several threads in one call, so each graph gets one thread, and there is a worker for each core.
 */
#define _POSIX_C_SOURCE 200809L
#include <fgclip_rt.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ppm.h"

struct request {
    const char *path;
    struct timespec deadline;
    float *vector;   /* [dim], of the caller */
    char fault[640]; /* empty after a success */
};

struct worker {
    pthread_t thread;
    struct pool *pool;
    fgclip_context *context;
    struct request *running; /* NULL while it is idle */
    int cancelled;           /* whether `running` was cancelled */
};

/* `lock` guards everything that changes while the threads run. */
struct pool {
    pthread_mutex_t lock;
    pthread_cond_t arrived; /* a request is in the queue, or the queue is closed */
    pthread_cond_t taken;   /* there is room in the queue */
    pthread_cond_t started; /* a request runs, or the workers have ended */
    struct request **queue; /* a ring of `capacity` */
    size_t capacity, first, waiting;
    int closed, ended;
    uint32_t dim;
    struct worker *workers;
    size_t worker_count;
    pthread_t watcher;
    int has_watcher;
};

static struct timespec now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time;
}

static int is_before(struct timespec one, struct timespec other) {
    return one.tv_sec < other.tv_sec || (one.tv_sec == other.tv_sec && one.tv_nsec < other.tv_nsec);
}

/* Runs a request outside the lock. */
static void run(struct worker *worker, struct request *request) {
    fgclip_error error = FGCLIP_ERROR_INIT;
    fgclip_image image;
    const char *fault = ppm_read(request->path, &image);
    if (fault != NULL) {
        snprintf(request->fault, sizeof request->fault, "%s %s", request->path, fault);
        return;
    }
    if (fgclip_embed_images(worker->context, &image, 1, NULL, request->vector, worker->pool->dim, &error)) {
        snprintf(request->fault, sizeof request->fault, "%s", error.message);
    }
    ppm_free(&image);
}

static void *work(void *given) {
    struct worker *worker = given;
    struct pool *pool = worker->pool;
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        struct request *request;
        while (pool->waiting == 0 && !pool->closed) {
            pthread_cond_wait(&pool->arrived, &pool->lock);
        }
        if (pool->waiting == 0) {
            break;
        }
        request = pool->queue[pool->first];
        pool->first = (pool->first + 1) % pool->capacity;
        pool->waiting--;
        pthread_cond_signal(&pool->taken);
        if (!is_before(now(), request->deadline)) {
            snprintf(request->fault, sizeof request->fault, "the deadline passed in the queue.");
            continue;
        }
        worker->running = request;
        pthread_cond_signal(&pool->started);
        pthread_mutex_unlock(&pool->lock);
        run(worker, request);
        pthread_mutex_lock(&pool->lock);
        worker->running = NULL;
        /* Nobody cancels an idle worker, so the next request begins with a context that is not cancelled. */
        if (worker->cancelled) {
            worker->cancelled = 0;
            fgclip_context_reset(worker->context, NULL);
        }
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

/* Cancels requests at their deadlines. */
static void *watch(void *given) {
    struct pool *pool = given;
    pthread_mutex_lock(&pool->lock);
    while (!pool->ended) {
        struct timespec time = now(), next = {0, 0};
        int has_next = 0;
        size_t at;
        for (at = 0; at < pool->worker_count; at++) {
            struct worker *worker = &pool->workers[at];
            if (worker->running == NULL || worker->cancelled) {
                continue;
            }
            if (!is_before(time, worker->running->deadline)) {
                worker->cancelled = 1;
                fgclip_context_cancel(worker->context, NULL);
            } else if (!has_next || is_before(worker->running->deadline, next)) {
                next = worker->running->deadline;
                has_next = 1;
            }
        }
        if (has_next) {
            pthread_cond_timedwait(&pool->started, &pool->lock, &next);
        } else {
            pthread_cond_wait(&pool->started, &pool->lock);
        }
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

/* Lets the queue run empty, and ends the threads. A pool that started only in part is ended too. */
static void pool_stop(struct pool *pool) {
    size_t at;
    pthread_mutex_lock(&pool->lock);
    pool->closed = 1;
    pthread_cond_broadcast(&pool->arrived);
    pthread_mutex_unlock(&pool->lock);
    for (at = 0; at < pool->worker_count; at++) {
        pthread_join(pool->workers[at].thread, NULL);
    }
    pthread_mutex_lock(&pool->lock);
    pool->ended = 1;
    pthread_cond_signal(&pool->started);
    pthread_mutex_unlock(&pool->lock);
    if (pool->has_watcher) {
        pthread_join(pool->watcher, NULL);
    }
    for (at = 0; at < pool->worker_count; at++) {
        fgclip_context_free(pool->workers[at].context);
    }
    free(pool->workers);
    free(pool->queue);
    pthread_cond_destroy(&pool->started);
    pthread_cond_destroy(&pool->taken);
    pthread_cond_destroy(&pool->arrived);
    pthread_mutex_destroy(&pool->lock);
}

/* Returns 0, or -1 with the sentence in `error`. */
static int pool_start(struct pool *pool, const fgclip_model *model, size_t count, fgclip_error *error) {
    pthread_condattr_t clock;
    memset(pool, 0, sizeof *pool);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->arrived, NULL);
    pthread_cond_init(&pool->taken, NULL);
    /* A deadline does not move when somebody sets the time of day. */
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&pool->started, &clock);
    pthread_condattr_destroy(&clock);
    pool->capacity = count;
    pool->queue = calloc(count, sizeof *pool->queue);
    pool->workers = calloc(count, sizeof *pool->workers);
    if (pool->queue == NULL || pool->workers == NULL) {
        snprintf(error->message, sizeof error->message, "%zu workers do not fit into memory; start fewer.", count);
        goto failed;
    }
    if (fgclip_model_dim(model, &pool->dim, error)) {
        goto failed;
    }
    for (; pool->worker_count < count; pool->worker_count++) {
        struct worker *worker = &pool->workers[pool->worker_count];
        worker->pool = pool;
        if (fgclip_context_new(model, &worker->context, error)) {
            goto failed;
        }
        if (pthread_create(&worker->thread, NULL, work, worker)) {
            fgclip_context_free(worker->context);
            goto no_thread;
        }
    }
    pool->has_watcher = pthread_create(&pool->watcher, NULL, watch, pool) == 0;
    if (pool->has_watcher) {
        return 0;
    }
no_thread:
    snprintf(error->message, sizeof error->message, "no thread can be made; raise the limit of threads.");
failed:
    pool_stop(pool);
    return -1;
}

/* Puts a request into the queue, and waits while that is full. */
static void pool_submit(struct pool *pool, struct request *request, long milliseconds) {
    pthread_mutex_lock(&pool->lock);
    while (pool->waiting == pool->capacity) {
        pthread_cond_wait(&pool->taken, &pool->lock);
    }
    request->deadline = now();
    request->deadline.tv_sec += milliseconds / 1000;
    request->deadline.tv_nsec += milliseconds % 1000 * 1000000;
    if (request->deadline.tv_nsec >= 1000000000) {
        request->deadline.tv_sec++;
        request->deadline.tv_nsec -= 1000000000;
    }
    pool->queue[(pool->first + pool->waiting) % pool->capacity] = request;
    pool->waiting++;
    pthread_cond_signal(&pool->arrived);
    pthread_mutex_unlock(&pool->lock);
}

/* A number of an argument, or -1. */
static long number(const char *text, long most) {
    char *end;
    long value = strtol(text, &end, 10);
    return end != text && *end == 0 && value > 0 && value <= most ? value : -1;
}

int main(int argc, char **argv) {
    fgclip_error error = FGCLIP_ERROR_INIT;
    fgclip_options options = FGCLIP_OPTIONS_INIT;
    fgclip_model *model = NULL;
    struct request *requests = NULL;
    float *vectors = NULL;
    struct pool pool;
    uint32_t dim;
    size_t count = argc > 4 ? (size_t)argc - 4 : 0, at;
    long workers = argc > 4 ? number(argv[2], 1024) : -1, milliseconds = argc > 4 ? number(argv[3], 86400000) : -1;
    int result = 1;
    if (workers < 0 || milliseconds < 0) {
        fprintf(stderr, "usage: %s BUNDLE WORKERS MILLISECONDS IMAGE.ppm...\n", argv[0]);
        return 2;
    }
    options.threads = 1;
    /* The graph is opened before the first request, whose deadline would pass meanwhile. */
    if (fgclip_model_open(argv[1], &options, &model, &error) || fgclip_model_dim(model, &dim, &error) ||
        fgclip_model_warm(model, FGCLIP_GRAPH_VISION, &error)) {
        goto end;
    }
    requests = calloc(count, sizeof *requests);
    vectors = calloc(count, dim * sizeof *vectors);
    if (requests == NULL || vectors == NULL) {
        snprintf(error.message, sizeof error.message, "%zu images do not fit into memory; pass fewer.", count);
        goto end;
    }
    if (pool_start(&pool, model, (size_t)workers, &error)) {
        goto end;
    }
    for (at = 0; at < count; at++) {
        requests[at].path = argv[4 + at];
        requests[at].vector = vectors + at * dim;
        pool_submit(&pool, &requests[at], milliseconds);
    }
    pool_stop(&pool);
    for (at = 0; at < count; at++) {
        const float *vector = requests[at].vector;
        if (requests[at].fault[0] == 0) {
            printf("%s: %.4f %.4f ... (%u floats)\n", requests[at].path, vector[0], vector[1], (unsigned)dim);
        } else {
            printf("%s: %s\n", requests[at].path, requests[at].fault);
        }
    }
    result = 0;
end:
    if (result != 0) {
        fprintf(stderr, "%s\n", error.message);
    }
    free(vectors);
    free(requests);
    fgclip_model_close(model);
    return result;
}
