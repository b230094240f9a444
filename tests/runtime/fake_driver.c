/* NVIDIA's driver made of host memory: what is enqueued is done at once, in no stream.
 *
 * Stands for libcuda.so.1 below the real PyCUDA and cuda-bindings. It refuses what the driver
 * refuses (no current context, sizes of 0, waiting for a stream that is held or captured),
 * counts what is not freed, and replays graphs: copies, and calls of the engine by number.
 * Functions without a line of their own are added when it is compiled; they do nothing. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long P;
typedef struct { void *to; const void *from; size_t size; long call; } Work;
typedef struct { int count; Work works[64]; } Graph;

static __thread int depth = 0;
static int counts[6]; /* device blocks, pinned blocks, streams, events, graphs, executables */
enum { DEVICE, PINNED, STREAMS, EVENTS, GRAPHS, EXECUTABLES };
static __thread Graph *captured = 0; /* other threads go on: "thread local" mode */
static volatile uint32_t *flag = 0;
static void (*call_engine)(long) = 0;
static long next_handle = 0x5000;

#define CURRENT if (!depth) return 201 /* CUDA_ERROR_INVALID_CONTEXT */
#define WAITS \
  do { \
    if (captured) return 900; \
    if (flag && *flag != 1) return 719; \
    flag = 0; /* passed: its memory may go */ \
  } while (0)
#define COUNT(what, by) __sync_add_and_fetch(&counts[what], by)
static void *handle(void) { return (void *)__sync_add_and_fetch(&next_handle, 16); }

int fake_count(int what) { return what < 6 ? counts[what] : depth; }
void fake_engine(void (*function)(long)) { call_engine = function; }
static int work(void *to, const void *from, size_t size, long call) {
  if (captured) {
    if (captured->count == 64) return 2;
    captured->works[captured->count++] = (Work){to, from, size, call};
  } else if (size) memcpy(to, from, size);
  else call_engine(call);
  return 0;
}
int fake_call(long call) { return work(0, 0, 0, call); }

int cuInit(unsigned f) { return 0; }
int cuDriverGetVersion(int *v) { *v = 13000; return 0; }
int cuDeviceGetCount(int *n) { *n = 1; return 0; }
int cuDeviceGet(int *d, int i) { *d = i; return i ? 101 : 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 9 : a == 76 ? 0 : 1; return 0; }
int cuDeviceGetName(char *s, int n, int d) { strncpy(s, "Fake", n); return 0; }
int cuDeviceTotalMem_v2(size_t *n, int d) { *n = 1ul << 34; return 0; }
int cuDeviceGetPCIBusId(char *s, int n, int d) { strncpy(s, "0000:01:00.0", n); return 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { *c = (void *)0x1000; return 0; }
int cuCtxPushCurrent_v2(void *c) { depth++; return 0; }
int cuCtxPopCurrent_v2(void **c) { CURRENT; depth--; *c = (void *)0x1000; return 0; }
int cuCtxGetCurrent(void **c) { *c = depth ? (void *)0x1000 : 0; return 0; }
int cuCtxGetDevice(int *d) { CURRENT; *d = 0; return 0; }
int cuStreamCreate(void **s, unsigned f) { CURRENT; COUNT(STREAMS, 1); *s = handle(); return 0; }
int cuStreamDestroy_v2(void *s) { CURRENT; COUNT(STREAMS, -1); return 0; }
int cuStreamSynchronize(void *s) { WAITS; return 0; }
int cuStreamWaitValue32_v2(void *s, P a, uint32_t v, unsigned f) { flag = (void *)a; return 0; }
int cuEventCreate(void **e, unsigned f) { CURRENT; COUNT(EVENTS, 1); *e = handle(); return 0; }
int cuEventDestroy_v2(void *e) { CURRENT; COUNT(EVENTS, -1); return 0; }
int cuEventSynchronize(void *e) { WAITS; return 0; }
int cuEventElapsedTime(float *f, void *a, void *b) { *f = 1.5; return 0; }
int cuEventElapsedTime_v2(float *f, void *a, void *b) { *f = 1.5; return 0; }
int cuMemAlloc_v2(P *p, size_t n) {
  CURRENT;
  if (!n) return 1;
  if (captured) return 900;
  COUNT(DEVICE, 1);
  *p = (P)aligned_alloc(256, (n + 255) / 256 * 256);
  return 0;
}
int cuMemFree_v2(P p) { CURRENT; WAITS; COUNT(DEVICE, -1); free((void *)p); return 0; }
int cuMemHostAlloc(void **p, size_t n, unsigned f) {
  CURRENT;
  if (!n) return 1;
  COUNT(PINNED, 1);
  *p = aligned_alloc(4096, (n + 4095) / 4096 * 4096);
  return 0;
}
int cuMemFreeHost(void *p) { CURRENT; COUNT(PINNED, -1); free(p); return 0; }
int cuMemGetInfo_v2(size_t *a, size_t *b) { CURRENT; *a = 1ul << 33; *b = 1ul << 34; return 0; }
int cuPointerGetAttribute(void *v, int a, P p) { *(int *)v = 0; return 0; }
int cuMemcpyDtoH_v2(void *h, P d, size_t n) { CURRENT; WAITS; memcpy(h, (void *)d, n); return 0; }
int cuMemcpyHtoDAsync_v2(P d, void *h, size_t n, void *s) { CURRENT; return work((void *)d, h, n, 0); }
int cuMemcpyDtoHAsync_v2(void *h, P d, size_t n, void *s) { CURRENT; return work(h, (void *)d, n, 0); }
int cuStreamBeginCapture_v2(void *s, int m) {
  CURRENT;
  if (m != 1) return 1; /* thread local, or other threads' allocations would end it */
  captured = calloc(1, sizeof(Graph));
  return 0;
}
int cuStreamEndCapture(void *s, void **g) {
  CURRENT;
  *g = captured;
  captured = 0;
  if (getenv("FAKE_CAPTURE_FAILS")) { free(*g); *g = 0; return 901; }
  COUNT(GRAPHS, 1);
  return 0;
}
int cuGraphInstantiateWithFlags(void **x, void *g, P f) {
  CURRENT;
  COUNT(EXECUTABLES, 1);
  *x = memcpy(malloc(sizeof(Graph)), g, sizeof(Graph));
  return 0;
}
int cuGraphLaunch(void *x, void *s) {
  CURRENT;
  Graph *graph = x;
  for (int i = 0; i < graph->count; i++) {
    Work *w = &graph->works[i];
    work(w->to, w->from, w->size, w->call);
  }
  return 0;
}
int cuGraphDestroy(void *g) { COUNT(GRAPHS, -1); free(g); return 0; }
int cuGraphExecDestroy(void *x) { COUNT(EXECUTABLES, -1); free(x); return 0; }
int cuGetErrorString(int e, const char **s) { *s = "refused by the fake driver"; return 0; }
int cuGetErrorName(int e, const char **s) { *s = "FAKE_ERROR"; return 0; }
int cuGetProcAddress_v2(const char *name, void **f, int version, P flags, int *status) {
  static const char *suffixes[] = {"_v4", "_v3", "_v2", "WithFlags", ""};
  void *library = dlopen("libcuda.so.1", RTLD_NOLOAD | RTLD_LAZY);
  char full[200];
  *f = 0;
  for (int i = 0; !*f && i < 5; i++) {
    snprintf(full, sizeof full, "%s%s", name, suffixes[i]);
    *f = dlsym(library, full);
  }
  if (status) *status = *f ? 0 : 1;
  return *f ? 0 : 500;
}
int cuGetProcAddress(const char *n, void **f, int v, P fl) {
  int status;
  return cuGetProcAddress_v2(n, f, v, fl, &status);
}
