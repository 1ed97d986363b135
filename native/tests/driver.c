/* A CUDA driver with one GPU, for machines without one: it answers who the GPU is, and runs nothing. */
#include <string.h>

int cuInit(unsigned flags);
int cuDeviceGet(int *device, int number);
int cuDeviceGetName(char *name, int length, int device);
int cuDeviceGetAttribute(int *value, int attribute, int device);

int cuInit(unsigned flags) {
    (void)flags;
    return 0;
}

int cuDeviceGet(int *device, int number) {
    *device = number;
    return number == 0 ? 0 : 101;
}

int cuDeviceGetName(char *name, int length, int device) {
    (void)device;
    strncpy(name, "a GPU that runs nothing", (size_t)length);
    return 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)attribute;
    (void)device;
    *value = 9;
    return 0;
}
