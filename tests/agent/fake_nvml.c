/* A tiny libnvidia-ml.so.1. It reads its state on every call from the file that FAKE_NVML names: one line for
 * each GPU, name|uuid|MiB total|MiB used|GPU %|memory %|C|mW|fault|pid:MiB,pid:MiB|uncorrected ECC|MIG,
 * and where it matters |NVLink group|profile:uuid:MiB,profile:uuid:MiB for its MIG instances, and then
 * |replaced rows of correctable errors:of uncorrectable ones:pending:failed|retired pages pending
 * |memory C:mJ:PCIe replays:NVLink KiB sent:received:PCIe bytes sent:received|throttle bits:encoder %:decoder %.
 * A process may have its load behind its memory, pid:MiB:%.
 * A negative number means "not supported". No file: the driver is not loaded (9). XID events are absent. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned int u32;
typedef unsigned long long u64;
enum { OK = 0, UNINITIALIZED = 1, BAD = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, SMALL = 7, NO_DRIVER = 9 };

struct gpu {
    char name[96], uuid[96], processes[256], instances[256];
    long total, used, util, memory_util, celsius, milliwatts, fault, ecc, mig, group, rows[4], retired,
        fields[7], throttle, encoder, decoder;
};
static int initialised;

static int load(struct gpu *gpus) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[1024];
    int count = 0;
    if (!file) return -1;
    while (count < 16 && fgets(line, sizeof line, file)) {
        struct gpu *g = &gpus[count];
        memset(g, 0, sizeof *g);
        g->group = g->rows[0] = g->retired = g->throttle = g->encoder = g->decoder = -1;
        for (int i = 0; i < 7; i++) g->fields[i] = -1;
        if (sscanf(line, "%95[^|]|%95[^|]|%ld|%ld|%ld|%ld|%ld|%ld|%ld|%255[^|]|%ld|%ld|%ld|%255[^|\n]|%ld:%ld:%ld:%ld|%ld"
                   "|%ld:%ld:%ld:%ld:%ld:%ld:%ld|%ld:%ld:%ld",
                   g->name,
                   g->uuid, &g->total, &g->used, &g->util, &g->memory_util, &g->celsius, &g->milliwatts,
                   &g->fault, g->processes, &g->ecc, &g->mig, &g->group, g->instances, &g->rows[0],
                   &g->rows[1], &g->rows[2], &g->rows[3], &g->retired, &g->fields[0], &g->fields[1],
                   &g->fields[2], &g->fields[3], &g->fields[4], &g->fields[5], &g->fields[6], &g->throttle,
                   &g->encoder, &g->decoder) >= 12)
            count++;
    }
    fclose(file);
    return count;
}

/* A handle is 1 + the index of the GPU, and 1000 times 1 + the number of a MIG instance of it. */
static int instance(struct gpu *g, int number) {
    char text[256], profile[32], uuid[96];
    strcpy(text, g->instances);
    char *at = strtok(text, ",");
    for (; at && number; number--) at = strtok(NULL, ",");
    if (!at || sscanf(at, "%31[^:]:%95[^:]:%ld", profile, uuid, &g->total) != 3) return NOT_FOUND;
    strcpy(g->uuid, uuid);
    strcat(strcat(g->name, " MIG "), profile);
    g->used = 0;
    return OK;
}

static int find(void *handle, struct gpu *out) {
    static struct gpu gpus[16];
    int count = load(gpus), index = (int)((long)handle % 1000) - 1, number = (int)((long)handle / 1000);
    if (!initialised) return UNINITIALIZED;
    if (count < 0) return NO_DRIVER;
    if (index < 0 || index >= count) return BAD;
    *out = gpus[index];
    if (number && instance(out, number - 1)) return NOT_FOUND;
    return (int)out->fault;
}

int nvmlInitWithFlags(u32 flags) {
    static struct gpu gpus[16];
    (void)flags;
    if (load(gpus) < 0) return NO_DRIVER;
    initialised++;
    return OK;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { if (!initialised) return UNINITIALIZED; initialised--; return OK; }
const char *nvmlErrorString(int code) { return code == 15 ? "GPU is lost" : "fake error"; }
int nvmlSystemGetDriverVersion(char *text, u32 size) { snprintf(text, size, "580.65.06"); return OK; }
int nvmlSystemGetNVMLVersion(char *text, u32 size) { snprintf(text, size, "13.580"); return OK; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 13000; return OK; }
int nvmlDeviceGetCount_v2(u32 *count) {
    static struct gpu gpus[16];
    int found = load(gpus);
    if (found < 0) return NO_DRIVER;
    *count = (u32)found;
    return OK;
}
int nvmlDeviceGetHandleByIndex_v2(u32 index, void **handle) {
    struct gpu g;
    int code = find((void *)(long)(index + 1), &g);
    if (code == 15 || code == BAD || code == UNINITIALIZED || code == NO_DRIVER) return code;
    *handle = (void *)(long)(index + 1);
    return OK;
}
#define DEVICE(handle) struct gpu g; int code = find(handle, &g); if (code) return code
int nvmlDeviceGetName(void *h, char *text, u32 size) { DEVICE(h); snprintf(text, size, "%s", g.name); return OK; }
int nvmlDeviceGetUUID(void *h, char *text, u32 size) {
    struct gpu g;
    int code = find(h, &g);
    if (code == 15 || code == UNINITIALIZED || code == NO_DRIVER) return code;
    snprintf(text, size, "%s", g.uuid);
    return OK;
}
int nvmlDeviceGetIndex(void *h, u32 *index) { DEVICE(h); *index = (u32)((long)h - 1); return OK; }
struct memory { u64 total, free, used; };
int nvmlDeviceGetMemoryInfo(void *h, struct memory *m) {
    DEVICE(h);
    if (g.used < 0) return NOT_SUPPORTED;
    m->total = (u64)g.total << 20; m->used = (u64)g.used << 20; m->free = m->total - m->used;
    return OK;
}
struct rates { u32 gpu, memory; };
int nvmlDeviceGetUtilizationRates(void *h, struct rates *r) {
    DEVICE(h);
    if (g.util < 0) return NOT_SUPPORTED;
    r->gpu = (u32)g.util; r->memory = (u32)g.memory_util;
    return OK;
}
int nvmlDeviceGetTemperature(void *h, u32 sensor, u32 *c) {
    DEVICE(h); (void)sensor;
    if (g.celsius < 0) return NOT_SUPPORTED;
    *c = (u32)g.celsius;
    return OK;
}
int nvmlDeviceGetPowerUsage(void *h, u32 *mw) {
    DEVICE(h);
    if (g.milliwatts < 0) return NOT_SUPPORTED;
    *mw = (u32)g.milliwatts;
    return OK;
}
int nvmlDeviceGetEnforcedPowerLimit(void *h, u32 *mw) { DEVICE(h); *mw = 700000; return OK; }
int nvmlDeviceGetClockInfo(void *h, u32 kind, u32 *mhz) { DEVICE(h); *mhz = kind == 1 ? 1755 : 2619; return OK; }
int nvmlDeviceGetTotalEccErrors(void *h, u32 kind, u32 counter, u64 *count) {
    DEVICE(h); (void)counter;
    if (g.ecc < 0) return NOT_SUPPORTED;
    *count = kind == 1 ? (u64)g.ecc : 0;
    return OK;
}
int nvmlDeviceGetRemappedRows(void *h, u32 *corrected, u32 *uncorrected, u32 *pending, u32 *failed) {
    DEVICE(h);
    if (g.rows[0] < 0) return NOT_SUPPORTED;
    *corrected = (u32)g.rows[0]; *uncorrected = (u32)g.rows[1]; *pending = (u32)g.rows[2]; *failed = (u32)g.rows[3];
    return OK;
}
int nvmlDeviceGetRetiredPagesPendingStatus(void *h, u32 *pending) {
    DEVICE(h);
    if (g.retired < 0) return NOT_SUPPORTED;
    *pending = (u32)g.retired;
    return OK;
}
int nvmlDeviceGetMigMode(void *h, u32 *now, u32 *pending) {
    DEVICE(h);
    if (g.mig < 0) return NOT_SUPPORTED;
    *now = *pending = (u32)g.mig;
    return OK;
}
int nvmlDeviceGetMaxMigDeviceCount(void *h, u32 *count) { DEVICE(h); *count = g.mig == 1 ? 7 : 0; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *h, u32 index, void **out) {
    void *child = (void *)((long)h + 1000 * ((long)index + 1));
    DEVICE(child);
    *out = child;
    return OK;
}
int nvmlDeviceGetP2PStatus(void *h, void *other, int capability, int *status) {
    struct gpu o;
    DEVICE(h);
    if (find(other, &o)) return BAD;
    (void)capability;
    *status = g.group >= 0 && g.group == o.group ? 0 : 3;
    return OK;
}
struct process { u32 pid; u64 memory; u32 gpu_instance, compute_instance; };
int nvmlDeviceGetComputeRunningProcesses_v3(void *h, u32 *count, struct process *out) {
    DEVICE(h);
    u32 found = 0;
    for (char *at = strtok(g.processes, ","); at; at = strtok(NULL, ",")) {
        u32 pid; u64 mib;
        if (sscanf(at, "%u:%llu", &pid, &mib) != 2) continue;
        if (found < *count) out[found] = (struct process){pid, mib << 20, ~0u, ~0u};
        found++;
    }
    int fits = found <= *count;
    *count = found;
    return fits ? OK : SMALL;
}
struct field { u32 id, scope; long long timestamp, latency; int type, code; u64 value; };
int nvmlDeviceGetFieldValues(void *h, int count, struct field *out) {
    static const u32 ids[] = {82, 83, 94, 138, 139, 197, 198};
    DEVICE(h);
    for (int i = 0; i < count; i++) {
        out[i].code = NOT_SUPPORTED;
        for (int k = 0; k < 7; k++)
            if (ids[k] == out[i].id && g.fields[k] >= 0) { out[i].code = OK; out[i].type = k == 0 ? 1 : 3; out[i].value = (u64)g.fields[k]; }
    }
    return OK;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *h, u64 *bits) {
    DEVICE(h);
    if (g.throttle < 0) return NOT_SUPPORTED;
    *bits = (u64)g.throttle;
    return OK;
}
int nvmlDeviceGetEncoderUtilization(void *h, u32 *percent, u32 *period) {
    DEVICE(h);
    if (g.encoder < 0) return NOT_SUPPORTED;
    *percent = (u32)g.encoder; *period = 167000;
    return OK;
}
int nvmlDeviceGetDecoderUtilization(void *h, u32 *percent, u32 *period) {
    DEVICE(h);
    if (g.decoder < 0) return NOT_SUPPORTED;
    *percent = (u32)g.decoder; *period = 167000;
    return OK;
}
struct load { u32 pid; u64 at; u32 sm, memory, encoder, decoder; };
int nvmlDeviceGetProcessUtilization(void *h, struct load *out, u32 *count, u64 since) {
    DEVICE(h);
    u32 found = 0;
    for (char *at = strtok(g.processes, ","); at; at = strtok(NULL, ",")) {
        u32 pid, percent; u64 mib;
        if (sscanf(at, "%u:%llu:%u", &pid, &mib, &percent) != 3) continue;
        if (out && found < *count) out[found] = (struct load){pid, since + 1000, percent, 0, 0, 0};
        found++;
    }
    if (!found) return NOT_FOUND;
    int fits = out && found <= *count;
    *count = found;
    return fits ? OK : SMALL;
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *h, u32 *count, struct process *out) {
    DEVICE(h); (void)out;
    *count = 0;
    return OK;
}
