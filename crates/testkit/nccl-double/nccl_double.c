/* A stand-in for NCCL over host memory, for 1 to 8 processes of one machine without a GPU.
 *
 * It exports the NCCL (and the one CUDA runtime) symbols that equipoise-comm-nccl loads, with NCCL's signatures, and
 * keeps what matters to a caller: results on every rank, failure modes, and abort from another thread. A communicator
 * is one file, mapped by all ranks, in the folder named by NCCL_DOUBLE_DIR; the unique id names the file.
 *
 * Differences: an operation has finished when the call returns, and ranks that call different operations get
 * ncclInvalidUsage where NCCL would hang.
 *
 * NCCL_DOUBLE_FAIL="RANK:N": from its N-th operation on (counted from 0), rank RANK reports the asynchronous error
 * ncclRemoteError, to all ranks, and its operations have no effect, as when a link goes down.
 * NCCL_DOUBLE_HANG="RANK:N": the N-th operation of rank RANK returns only when the communicator is aborted. */

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MAX_RANKS 8
#define SLOT_FLOATS (64 * 1024)

enum { Success = 0, SystemError = 2, InvalidArgument = 4, InvalidUsage = 5, RemoteError = 6 };
enum { Sum = 0, Float32 = 7 };
enum { AllReduce = 1, ReduceScatter, AllGather };

typedef struct { char internal[128]; } UniqueId;

typedef struct {
    atomic_int joined, arrived, left, aborted, async_error;
    atomic_uint phase;
    int size;
    struct { int kind; size_t count; } calls[MAX_RANKS];
    float slots[MAX_RANKS][SLOT_FLOATS];
} Shared;

typedef struct {
    Shared *shared;
    int rank, size, operations, aborted;
    char path[256];
} Communicator;

static void nap(void) {
    struct timespec pause = {0, 50 * 1000};
    nanosleep(&pause, NULL);
}

static int folder_path(char *path, size_t room, const char *name) {
    const char *folder = getenv("NCCL_DOUBLE_DIR");
    return folder && snprintf(path, room, "%s/%s", folder, name) < (int)room;
}

/* Waits for all ranks; false once the communicator is aborted or broken. */
static int meet(Communicator *c) {
    Shared *s = c->shared;
    unsigned phase = atomic_load(&s->phase);
    if (atomic_fetch_add(&s->arrived, 1) + 1 == s->size) {
        atomic_store(&s->arrived, 0);
        atomic_fetch_add(&s->phase, 1);
    }
    while (atomic_load(&s->phase) == phase) {
        if (atomic_load(&s->aborted) || atomic_load(&s->async_error)) return 0;
        nap();
    }
    return 1;
}

/* True if the environment variable says "RANK:N" for this rank and an operation not after this one. */
static int planned(const char *variable, const Communicator *c) {
    int rank, operation;
    const char *text = getenv(variable);
    return text && sscanf(text, "%d:%d", &rank, &operation) == 2 && rank == c->rank && c->operations >= operation;
}

int ncclGetVersion(int *version) {
    *version = 22809;
    return Success;
}

const char *ncclGetErrorString(int result) {
    switch (result) {
    case Success: return "no error";
    case SystemError: return "unhandled system error";
    case InvalidArgument: return "invalid argument";
    case InvalidUsage: return "invalid usage";
    case RemoteError: return "remote process exited or there was a network error";
    default: return "unknown result code";
    }
}

int ncclGetUniqueId(UniqueId *id) {
    char path[256];
    memset(id, 0, sizeof *id);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    snprintf(id->internal, sizeof id->internal, "nccl-%d-%lld", getpid(), now.tv_sec * 1000000000LL + now.tv_nsec);
    if (!folder_path(path, sizeof path, id->internal)) return SystemError;
    int file = open(path, O_CREAT | O_EXCL | O_RDWR, 0600);
    if (file < 0 || ftruncate(file, sizeof(Shared)) != 0) return SystemError;
    close(file);
    return Success;
}

int ncclCommInitRank(Communicator **communicator, int size, UniqueId id, int rank) {
    if (size < 1 || size > MAX_RANKS || rank < 0 || rank >= size) return InvalidArgument;
    Communicator *c = calloc(1, sizeof *c);
    int file = c && folder_path(c->path, sizeof c->path, id.internal) ? open(c->path, O_RDWR) : -1;
    if (file < 0) {
        free(c);
        return SystemError;
    }
    c->shared = mmap(NULL, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    c->rank = rank;
    c->size = size;
    if (c->shared == MAP_FAILED || atomic_fetch_add(&c->shared->joined, 1) >= size) {
        free(c); /* an id that was used up, as a stale one is */
        return SystemError;
    }
    c->shared->size = size;
    while (atomic_load(&c->shared->joined) < size) nap();
    *communicator = c;
    return Success;
}

/* Every rank contributes `sent` floats, at most SLOT_FLOATS; the slots are readable until `leave`. */
static int enter(Communicator *c, int kind, const float *send, size_t sent, size_t whole) {
    c->shared->calls[c->rank].kind = kind;
    c->shared->calls[c->rank].count = whole;
    memcpy(c->shared->slots[c->rank], send, sent * sizeof *send);
    if (!meet(c)) return RemoteError;
    for (int rank = 0; rank < c->size; rank++) {
        if (c->shared->calls[rank].kind != kind || c->shared->calls[rank].count != whole) return InvalidUsage;
    }
    return Success;
}

static int leave(Communicator *c) {
    return meet(c) ? Success : RemoteError;
}

static float sum(const Communicator *c, size_t at) {
    float total = 0;
    for (int rank = 0; rank < c->size; rank++) total += c->shared->slots[rank][at];
    return total;
}

/* What happens before every operation; true if it shall not take place. */
static int intercepted(Communicator *c, int *result) {
    *result = Success;
    if (atomic_load(&c->shared->aborted)) {
        *result = InvalidUsage;
        return 1;
    }
    int fail = planned("NCCL_DOUBLE_FAIL", c), hang = planned("NCCL_DOUBLE_HANG", c);
    c->operations++;
    if (fail) atomic_store(&c->shared->async_error, RemoteError);
    while (hang && !atomic_load(&c->shared->aborted)) nap();
    return fail || hang || atomic_load(&c->shared->async_error) != 0;
}

int ncclAllReduce(const void *send, void *receive, size_t count, int type, int op, Communicator *c, void *stream) {
    int result;
    (void)stream;
    if (type != Float32 || op != Sum) return InvalidArgument;
    if (intercepted(c, &result)) return result;
    for (size_t at = 0; at < count || at == 0; at += SLOT_FLOATS) {
        size_t n = count - at < SLOT_FLOATS ? count - at : SLOT_FLOATS;
        result = enter(c, AllReduce, (const float *)send + at, n, count);
        for (size_t i = 0; result == Success && i < n; i++) ((float *)receive)[at + i] = sum(c, i);
        if (result == Success) result = leave(c);
        if (result != Success) break;
    }
    /* A broken link shows up asynchronously only. */
    return result == RemoteError ? Success : result;
}

int ncclReduceScatter(const void *send, void *receive, size_t count, int type, int op, Communicator *c, void *stream) {
    int result;
    (void)stream;
    if (type != Float32 || op != Sum || count * c->size > SLOT_FLOATS) return InvalidArgument;
    if (intercepted(c, &result)) return result;
    result = enter(c, ReduceScatter, send, count * c->size, count);
    for (size_t i = 0; result == Success && i < count; i++) ((float *)receive)[i] = sum(c, c->rank * count + i);
    if (result == Success) result = leave(c);
    return result == RemoteError ? Success : result;
}

int ncclAllGather(const void *send, void *receive, size_t count, int type, Communicator *c, void *stream) {
    int result;
    (void)stream;
    if (type != Float32 || count > SLOT_FLOATS) return InvalidArgument;
    if (intercepted(c, &result)) return result;
    result = enter(c, AllGather, send, count, count);
    for (int rank = 0; result == Success && rank < c->size; rank++) {
        memcpy((float *)receive + rank * count, c->shared->slots[rank], count * sizeof(float));
    }
    if (result == Success) result = leave(c);
    return result == RemoteError ? Success : result;
}

int ncclCommGetAsyncError(Communicator *c, int *result) {
    *result = atomic_load(&c->shared->async_error);
    return Success;
}

int ncclCommAbort(Communicator *c) {
    atomic_store(&c->shared->aborted, 1);
    return Success; /* an operation of another thread may still read the mapping: it is not freed */
}

int ncclCommDestroy(Communicator *c) {
    if (atomic_fetch_add(&c->shared->left, 1) + 1 == c->size) unlink(c->path);
    munmap(c->shared, sizeof(Shared));
    free(c);
    return Success;
}

int cudaSetDevice(int device) {
    return device >= 0 && device < MAX_RANKS ? 0 : 101 /* cudaErrorInvalidDevice */;
}
