/* Memories, checks and scheduler of the emulator. It knows nothing of PTX.
 *
 * One C file per kernel: REGISTERS, LOCAL_BYTES, this file, then step(), the translated instructions. A CUDA thread is a
 * resumable state machine: step() runs it until it ends, or waits at a barrier or a warp operation; the scheduler then
 * decides who may go on. Blocks run one after the other. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { uint8_t u; } R1;
typedef union { uint8_t u; int8_t s; } R8;
typedef union { uint16_t u; int16_t s; _Float16 f; } R16;
typedef union { uint32_t u; int32_t s; float f; } R32;
typedef union { uint64_t u; int64_t s; double f; } R64;

enum State { RUNNING, AT_BARRIER, AT_WARP_OP, EXITED };
enum WarpOp { SHFL_UP, SHFL_DOWN, SHFL_BFLY, SHFL_IDX, VOTE_BALLOT, VOTE_ANY, VOTE_ALL, WARP_BARRIER };
enum BarrierOp { BARRIER_PLAIN, BARRIER_POPC, BARRIER_AND, BARRIER_OR };
enum Access { READ, READ_NC, WRITE };

#define SEVERAL (-1)

/* One stretch of memory. The maps have an entry per byte, or are NULL where nobody asked. */
typedef struct {
    uint64_t base, size, read_bytes, written_bytes;
    uint8_t *writable;    /* 1: the kernel may write this byte */
    uint8_t *written;     /* 1: written in this launch */
    int32_t *writer;      /* block that wrote it, + 1 */
    int32_t *reader;      /* block that read it, + 1, or SEVERAL */
    uint32_t write_first; /* 1: reading a byte before it is written is a fault */
    uint32_t nc_read, any_write;
} Buffer;

/* What is known of a byte of shared memory; an interval is (barriers passed, warp operations of the own warp). */
typedef struct {
    int32_t writer, write_epoch, write_sync;            /* thread + 1 */
    int32_t reader, reader_warp, read_epoch, read_sync; /* thread + 1, warp + 1; SEVERAL */
    uint8_t written;
} SharedByte;

typedef struct Block Block;
typedef struct {
    struct { REGISTERS } r;
    uint32_t tid[3], lane, warp, linear;
    int resume, state, line;
    uint64_t fuel;        /* branches until the others get a turn */
    int op;               /* the operation that it waits for, with its inputs ... */
    uint32_t mask, value, argument, clamp, vote;
    uint32_t result;      /* ... and outputs */
    uint8_t accepted;
    Block *block;
    uint8_t local[LOCAL_BYTES];
} Thread;

struct Block {
    Thread *threads;
    uint32_t size, warps, live, ctaid[3], id, shared_size;
    uint8_t *shared;
    SharedByte *shadow;
    int epoch, *warp_syncs;
};

static uint32_t ntid[3], nctaid[3];
static uint8_t *params, nowhere[64];    /* faulty accesses go nowhere */
static Buffer *buffers;
static int buffer_count;
static char *error_text;

static void fail(Thread *t, const char *what, uint64_t address, int bytes)
{
    if (error_text[0]) return;          /* the first fault counts */
    snprintf(error_text, 400, "%s: ptx line %d thread %u block %u address 0x%llx size %d", what, t->line, t->linear,
             t->block->id, (unsigned long long)address, bytes);
}

/* ------------------------------------------------------------------------------------------------ global memory */

static void note_access(Thread *t, Buffer *b, uint64_t i, int writes, uint64_t address, int bytes)
{
    int32_t me = (int32_t)t->block->id + 1, writer = b->writer[i];
    if (writer && writer != me)
        fail(t, writes ? "block race: two blocks write the same byte" : "block race: read of a byte that another block wrote",
             address, bytes);
    if (writes) {
        if (b->reader && b->reader[i] && b->reader[i] != me)
            fail(t, "block race: write to a byte that another block read", address, bytes);
        b->writer[i] = me;
    } else if (b->reader) {
        b->reader[i] = b->reader[i] && b->reader[i] != me ? SEVERAL : me;
    }
}

static void *global_at(Thread *t, uint64_t address, int bytes, enum Access how)
{
    Buffer *b = buffers, *end = buffers + buffer_count;
    if (address % bytes) { fail(t, "misaligned global access", address, bytes); return nowhere; }
    while (b < end && !(address >= b->base && address + bytes <= b->base + b->size)) b++;
    if (b == end) { fail(t, "global out of bounds", address, bytes); return nowhere; }
    uint64_t first = address - b->base;
    *(how == WRITE ? &b->written_bytes : &b->read_bytes) += bytes;
    b->nc_read |= how == READ_NC;
    b->any_write |= how == WRITE;
    if (b->nc_read && b->any_write) fail(t, "buffer is written and read through ld.global.nc", address, bytes);
    if (how != WRITE && !b->reader && !b->write_first && !b->writer) return (void *)address;
    for (uint64_t i = first; i < first + bytes; i++) {
        if (how == WRITE) {
            if (b->writable && !b->writable[i]) fail(t, "write outside the declared outputs", address, bytes);
            if (b->written) b->written[i] = 1;
        } else if (b->write_first && !b->written[i]) {
            fail(t, "read of an output before it is written", address, bytes);
        }
        if (b->writer) note_access(t, b, i, how == WRITE, address, bytes);
    }
    return (void *)address;
}

/* ----------------------------------------------------------------------------------------- shared and local memory */

static void check_shared(Thread *t, SharedByte *s, uint64_t address, int bytes, int write)
{
    int me = t->linear + 1, my_warp = t->warp + 1, epoch = t->block->epoch, sync = t->block->warp_syncs[t->warp];
    if (!write && !s->written) fail(t, "shared read before write", address, bytes);
    int written_now = s->writer && s->writer != me && s->write_epoch == epoch;
    if (written_now && !((s->writer - 1) / 32 == (int)t->warp && s->write_sync != sync))
        fail(t, write ? "shared race write/write" : "shared race read after unsynchronised write", address, bytes);
    int read_now = s->reader && s->reader != me && s->read_epoch == epoch;
    if (write && read_now && !(s->reader_warp == my_warp && s->read_sync != sync))
        fail(t, "shared race write after unsynchronised read", address, bytes);
    if (write) {
        s->writer = me; s->write_epoch = epoch; s->write_sync = sync; s->written = 1;
    } else {
        int fresh = !s->reader || s->read_epoch != epoch;
        s->reader = fresh || s->reader == me ? me : SEVERAL;
        s->reader_warp = fresh || s->reader_warp == my_warp ? my_warp : SEVERAL;
        s->read_epoch = epoch; s->read_sync = sync;
    }
}

static void *shared_at(Thread *t, uint64_t address, int bytes, enum Access how)
{
    Block *b = t->block;
    if (address % bytes) { fail(t, "misaligned shared access", address, bytes); return nowhere; }
    if (address + bytes > b->shared_size) { fail(t, "shared out of bounds", address, bytes); return nowhere; }
    for (int i = 0; i < bytes; i++) check_shared(t, b->shadow + address + i, address, bytes, how == WRITE);
    return b->shared + address;
}

static void *local_at(Thread *t, uint64_t address, int bytes)
{
    if (address % bytes || address + bytes > LOCAL_BYTES) { fail(t, "local access", address, bytes); return nowhere; }
    return t->local + address;
}

/* ---------------------------------------------------------------------------------------------------- arithmetic */

/* A float becomes an integer by saturation; NaN becomes 0. */
#define TO_INT(T, MIN, MAX, x) \
    ((x) != (x) ? (T)0 : (x) <= (double)(MIN) ? (T)(MIN) : (x) >= (double)(MAX) ? (T)(MAX) : (T)(x))

static inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector)
{
    uint64_t both = (uint64_t)b << 32 | a;
    uint32_t r = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t k = selector >> 4 * i & 15;
        uint8_t v = both >> 8 * (k & 7);
        if (k & 8) v = v & 128 ? 255 : 0;
        r |= (uint32_t)v << 8 * i;
    }
    return r;
}

/* Control flow of step(): leave the thread here, and come back at case k. */
#define SUSPEND(k, s) t->resume = (k); t->state = (s); return; case (k): ;
#define JUMP(k, label) if (!t->fuel--) { SUSPEND(k, RUNNING) } goto label;
static void step(Thread *t);

/* ----------------------------------------------------------------------------------------------------- scheduler */

static void exchange(Thread *t, Thread *lane, int lanes, uint32_t mask)
{
    int segment = t->clamp >> 8 & 31, last = t->clamp & 31, by = t->argument, j = t->lane;
    int highest = (j & segment) | (last & ~segment), lowest = j & segment;
    int source = t->op == SHFL_UP ? j - by : t->op == SHFL_DOWN ? j + by : t->op == SHFL_BFLY ? j ^ by
                                                                         : (lowest | (by & ~segment));
    t->accepted = t->op == SHFL_UP ? source >= highest : source <= highest;
    if (!t->accepted) source = j;
    if (source < 0 || source >= lanes || !(mask >> source & 1)) fail(t, "shfl reads a lane outside the mask", source, 0);
    else t->result = lane[source].value;
}

static void apply_warp_op(Thread *lane, int lanes, uint32_t mask)
{
    uint32_t ballot = 0;
    for (int j = 0; j < lanes; j++) if (mask >> j & 1 && lane[j].vote) ballot |= 1u << j;
    for (int j = 0; j < lanes; j++) {
        Thread *t = lane + j;
        if (!(mask >> j & 1)) continue;
        if (t->op <= SHFL_IDX) exchange(t, lane, lanes, mask);
        else t->result = t->op == VOTE_BALLOT ? ballot : t->op == VOTE_ANY ? ballot != 0 : ballot == mask;
        t->state = RUNNING;
    }
}

/* A warp operation happens once all lanes of its mask wait at the same instruction with the same mask. */
static int run_warp_ops(Block *b, uint32_t warp)
{
    Thread *lane = b->threads + warp * 32;
    int lanes = b->size - warp * 32 < 32 ? b->size - warp * 32 : 32, progress = 0;
    uint32_t everyone = lanes < 32 ? (1u << lanes) - 1 : ~0u, waiting = 0, exited = 0;
    for (int l = 0; l < lanes; l++) {
        if (lane[l].state == AT_WARP_OP) waiting |= 1u << l;
        if (lane[l].state == EXITED) exited |= 1u << l;
    }
    for (int l = 0; l < lanes; l++) {
        if (!(waiting >> l & 1)) continue;
        uint32_t mask = lane[l].mask & everyone;
        int same = 1;
        if (mask & exited) { fail(lane + l, "warp op: mask names an exited lane", mask, 0); return 0; }
        if (!(mask >> l & 1)) { fail(lane + l, "warp op: calling lane not in its own mask", mask, 0); return 0; }
        if ((mask & waiting) != mask) continue;
        for (int j = 0; j < lanes; j++)
            if (mask >> j & 1 && (lane[j].resume != lane[l].resume || lane[j].mask != lane[l].mask)) same = 0;
        if (!same) continue;
        apply_warp_op(lane, lanes, mask);
        waiting &= ~mask; b->warp_syncs[warp]++; progress = 1;
    }
    return progress;
}

static int release_barrier(Block *b)
{
    uint32_t waiting = 0, votes = 0;
    Thread *first = 0, *end = b->threads + b->size;
    for (Thread *t = b->threads; t < end; t++)
        if (t->state == AT_BARRIER) { waiting++; votes += t->vote != 0; if (!first) first = t; }
    if (!waiting || waiting != b->live) return 0;
    if (b->live != b->size) fail(first, "bar.sync after some threads exited", b->live, 0);
    for (Thread *t = b->threads; t < end; t++) {
        if (t->state != AT_BARRIER) continue;
        if (t->resume != first->resume) fail(t, "threads wait at different bar.sync instructions", 0, 0);
        t->result = t->op == BARRIER_POPC ? votes : t->op == BARRIER_AND ? votes == waiting : votes != 0;
        t->state = RUNNING;
    }
    b->epoch++;
    return 1;
}

static void start_block(Block *b, uint32_t id, const uint32_t *block)
{
    b->id = id; b->live = b->size; b->epoch = 1;
    b->ctaid[0] = id % nctaid[0]; b->ctaid[1] = id / nctaid[0] % nctaid[1]; b->ctaid[2] = id / nctaid[0] / nctaid[1];
    memset(b->warp_syncs, 0, b->warps * sizeof *b->warp_syncs);
    memset(b->shadow, 0, (b->shared_size + 16) * sizeof *b->shadow);
    memset(b->shared, 0xff, b->shared_size);
    for (uint32_t i = 0; i < b->size; i++) {
        Thread *t = b->threads + i;
        memset(t, 0xcd, sizeof *t);     /* registers and local memory start as garbage */
        t->tid[0] = i % block[0]; t->tid[1] = i / block[0] % block[1]; t->tid[2] = i / block[0] / block[1];
        t->lane = i % 32; t->warp = i / 32; t->linear = i; t->block = b;
        t->resume = t->line = t->vote = 0; t->state = RUNNING;
    }
}

/* 0: forward, 1: backward, else a permutation with that seed. */
static uint32_t *make_order(uint32_t n, uint32_t order)
{
    uint32_t *o = malloc((n + 1) * sizeof *o), x = order;
    for (uint32_t i = 0; i < n; i++) o[i] = order == 1 ? n - 1 - i : i;
    for (uint32_t i = n; order > 1 && i-- > 1;) {
        x = x * 1664525u + 1013904223u;
        uint32_t j = (x >> 8) % (i + 1), swap = o[i];
        o[i] = o[j]; o[j] = swap;
    }
    return o;
}

static void report_deadlock(Block *b)
{
    for (Thread *t = b->threads; t < b->threads + b->size; t++) {
        if (t->state == AT_BARRIER) fail(t, "deadlock at bar.sync", 0, 0);
        if (t->state == AT_WARP_OP) fail(t, "deadlock at warp op", 0, 0);
    }
}

static void run_block(Block *b, const uint32_t *order)
{
    while (b->live && !error_text[0]) {
        int progress = 0;
        for (uint32_t q = 0; q < b->size && !error_text[0]; q++) {
            Thread *t = b->threads + order[q];
            if (t->state != RUNNING) continue;
            t->fuel = 100000;
            step(t);
            progress = 1;
            if (t->state == EXITED) b->live--;
        }
        for (uint32_t w = 0; w < b->warps && !error_text[0]; w++) progress |= run_warp_ops(b, w);
        if (!error_text[0]) progress |= release_barrier(b);
        if (!progress && !error_text[0]) report_deadlock(b);
    }
}

typedef struct { uint32_t grid[3], block[3], shared_bytes, order, buffer_count; } Launch;

/* Returns 1 after a fault, with its text in `error`. */
int run(const Launch *launch, uint8_t *parameters, Buffer *memory, char *error)
{
    uint32_t blocks = launch->grid[0] * launch->grid[1] * launch->grid[2];
    Block b = {.size = launch->block[0] * launch->block[1] * launch->block[2], .shared_size = launch->shared_bytes};
    memcpy(ntid, launch->block, 12);
    memcpy(nctaid, launch->grid, 12);
    params = parameters; buffers = memory; buffer_count = launch->buffer_count; error_text = error;
    uint32_t *thread_order = make_order(b.size, launch->order), *block_order = make_order(blocks, launch->order);
    b.warps = (b.size + 31) / 32;
    b.threads = malloc(sizeof(Thread) * b.size);
    b.shared = aligned_alloc(256, (b.shared_size + 511) / 256 * 256);
    b.shadow = malloc(sizeof(SharedByte) * (b.shared_size + 16));
    b.warp_syncs = malloc(sizeof(int) * b.warps);
    for (uint32_t k = 0; k < blocks && !error_text[0]; k++) {
        start_block(&b, block_order[k], launch->block);
        run_block(&b, thread_order);
    }
    free(b.threads); free(b.shared); free(b.shadow); free(b.warp_syncs);
    free(thread_order); free(block_order);
    return error_text[0] != 0;
}
