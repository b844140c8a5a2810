/* extract BUNDLE BITS OUTPUT [in_place]: all kernels of a width, one behind the other, as int8. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kquant_family.h"

static uint8_t *load(const char *path, long *size) {
  FILE *file = fopen(path, "rb");
  if (!file) return NULL;
  fseek(file, 0, SEEK_END);
  *size = ftell(file);
  rewind(file);
  uint8_t *data = malloc((size_t)*size + 1);
  if (fread(data, 1, (size_t)*size, file) != (size_t)*size) *size = 0;
  fclose(file);
  return data;
}

int main(int argc, char **argv) {
  if (argc < 4) return 99;
  long size = 0;
  uint8_t *data = load(argv[1], &size);
  kqf_bundle bundle;
  int status = data ? kqf_open(&bundle, data, (size_t)size) : 98, bits = atoi(argv[2]);
  FILE *output = status ? NULL : fopen(argv[3], "wb");
  for (uint32_t i = 0; !status && i < bundle.kernel_count; ++i) {
    kqf_kernel kernel = kqf_kernel_at(&bundle, i);
    int8_t *own = malloc(kernel.count + 1);
    int8_t *weights = argc > 4 ? (int8_t *)data + (bundle.codes.data - data) + kernel.place : own;
    float *multipliers = malloc(sizeof(float) * kernel.channels);
    status = kqf_weights(&bundle, i, bits, weights);
    if (!status) status = kqf_multipliers(&bundle, i, bits, multipliers);
    if (!status) {
      fwrite(weights, 1, kernel.count, output);
      fwrite(multipliers, sizeof(float), kernel.channels, output);
    }
    free(own);
    free(multipliers);
  }
  if (output) fclose(output);
  free(data);
  return status;
}
