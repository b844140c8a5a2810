/* kquant_family.h: reads a kquant bundle (family.kqf) and makes the weights of a width. C99, no dependencies.
 *
 *   kqf_bundle bundle;
 *   if (kqf_open(&bundle, flash, size) != KQF_OK) ...            checks lengths and every checksum
 *   kqf_weights(&bundle, kernel, 4, weights);                    int8, in the layout of the .tflite file
 *   kqf_multipliers(&bundle, kernel, 4, multipliers);            signed scales, one for each channel
 *
 * `weights` may be the place of the kernel's codes if the bundle lies in memory that can be written: then the
 * codes are gone, and another width needs the bundle again. Nothing is allocated. The bundle is not trusted:
 * whatever its bytes are, no function reads or writes beyond it or beyond the count of weights.
 */
#ifndef KQUANT_FAMILY_H_
#define KQUANT_FAMILY_H_

#include <stddef.h>
#include <stdint.h>

enum { KQF_OK = 0, KQF_NO_BUNDLE = 1, KQF_VERSION = 2, KQF_CUT_OFF = 3, KQF_DAMAGED = 4, KQF_NO_WIDTH = 5 };

typedef struct {
  const uint8_t *data;
  uint32_t length;
} kqf_section;

typedef struct {
  const uint8_t *data;
  kqf_section codes, kernels, widths[9]; /* widths[bits]; of length 0 where there is none */
  uint32_t kernel_count, channel_count;
} kqf_bundle;

typedef struct {
  uint32_t place, count, channels, inner; /* the channel of element i is i / inner % channels */
} kqf_kernel;

static uint32_t kqf_u32(const uint8_t *p) {
  return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint32_t kqf_crc32(const uint8_t *p, uint32_t length) {
  uint32_t crc = 0xFFFFFFFFu;
  while (length--) {
    crc ^= *p++;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (0xEDB88320u & (0u - (crc & 1u)));
  }
  return ~crc;
}

/* Returns kernel `index`, which kqf_open has checked. */
static kqf_kernel kqf_kernel_at(const kqf_bundle *bundle, uint32_t index) {
  const uint8_t *p = bundle->kernels.data + 16 * index;
  kqf_kernel kernel = {kqf_u32(p), kqf_u32(p + 4), kqf_u32(p + 8), kqf_u32(p + 12)};
  return kernel;
}

/* Returns where the multipliers of all channels begin in the section of a width, and the dead channels. */
static uint32_t kqf_start(const kqf_bundle *bundle) { return (bundle->kernel_count + 3) / 4 * 4; }

static uint64_t kqf_dead(const kqf_bundle *bundle) {
  return kqf_start(bundle) + ((uint64_t)bundle->channel_count * 2 + 3) / 4 * 4;
}

static int kqf_check_kernels(kqf_bundle *bundle) {
  uint64_t channels = 0;
  bundle->kernel_count = bundle->kernels.length / 16;
  if (bundle->kernels.length % 16) return KQF_DAMAGED;
  for (uint32_t i = 0; i < bundle->kernel_count; ++i) {
    kqf_kernel kernel = kqf_kernel_at(bundle, i);
    uint64_t block = (uint64_t)kernel.channels * kernel.inner;
    if (!block || kernel.count % block) return KQF_DAMAGED;
    if ((uint64_t)kernel.place + kernel.count > bundle->codes.length) return KQF_DAMAGED;
    channels += kernel.channels;
  }
  if (channels > 0xFFFFFFFFu) return KQF_DAMAGED;
  bundle->channel_count = (uint32_t)channels;
  return KQF_OK;
}

static int kqf_check_width(const kqf_bundle *bundle, kqf_section width) {
  uint64_t dead = kqf_dead(bundle);
  if (width.length % 4 || dead + 4 > width.length) return KQF_DAMAGED;
  if ((width.length - dead - 4) / 4 < kqf_u32(width.data + dead)) return KQF_DAMAGED;
  for (uint32_t i = 0; i < bundle->kernel_count; ++i)
    if (width.data[i] < 1 || width.data[i] > 8) return KQF_DAMAGED;
  return KQF_OK;
}

/* Opens a bundle of `size` bytes, which stays where it is. Returns KQF_OK or what is wrong. */
static int kqf_open(kqf_bundle *bundle, const uint8_t *data, size_t size) {
  static const kqf_bundle empty;
  *bundle = empty;
  if (size < 8 || data[0] != 'K' || data[1] != 'Q' || data[2] != 'F' || data[3] != 'B') return KQF_NO_BUNDLE;
  if (size > 0xFFFFFFFFu) return KQF_DAMAGED;
  if ((data[4] | data[5] << 8) != 1) return KQF_VERSION;
  uint32_t sections = (uint32_t)(data[6] | data[7] << 8), end = 8 + 24 * sections;
  if ((size_t)end + 4 > size) return KQF_CUT_OFF;
  if (kqf_crc32(data, end) != kqf_u32(data + end)) return KQF_DAMAGED;
  bundle->data = data;
  for (uint32_t i = 0; i < sections; ++i) {
    const uint8_t *entry = data + 8 + 24 * i;
    uint32_t place = kqf_u32(entry + 8), length = kqf_u32(entry + 16);
    if (kqf_u32(entry + 12) || kqf_u32(entry + 20) || place > size || length > size - place) return KQF_CUT_OFF;
    kqf_section section = {data + place, length};
    if (kqf_crc32(section.data, length) != kqf_u32(entry + 4)) return KQF_DAMAGED;
    if (entry[0] == 'C' && entry[1] == 'O' && entry[2] == 'D') bundle->codes = section;
    if (entry[0] == 'K') bundle->kernels = section;
    if (entry[0] == 'W' && entry[3] >= '1' && entry[3] <= '8') bundle->widths[entry[3] - '0'] = section;
  }
  if (kqf_check_kernels(bundle) != KQF_OK) return KQF_DAMAGED;
  for (int bits = 1; bits <= 8; ++bits)
    if (bundle->widths[bits].length && kqf_check_width(bundle, bundle->widths[bits]) != KQF_OK) return KQF_DAMAGED;
  return KQF_OK;
}

/* Returns the integer of a code of 8 bits at a width: odd and symmetric, at 4 and 8 bits rounded. */
static int8_t kqf_integer(uint8_t code, int bits) {
  if (bits == 8) return (int8_t)(code - 128);
  if (bits == 4) return (int8_t)(((code + 8) >> 4) - 8);
  return (int8_t)(2 * (code >> (8 - bits)) + 1 - (1 << bits));
}

/* Returns the index of the first channel of a kernel among all channels. */
static uint32_t kqf_first_channel(const kqf_bundle *bundle, uint32_t index) {
  uint32_t first = 0;
  for (uint32_t i = 0; i < index; ++i) first += kqf_kernel_at(bundle, i).channels;
  return first;
}

static int kqf_has(const kqf_bundle *bundle, uint32_t index, int bits) {
  return bits >= 1 && bits <= 8 && bundle->widths[bits].length && index < bundle->kernel_count;
}

static void kqf_clear_channel(kqf_kernel kernel, uint32_t channel, int8_t *weights) {
  for (uint32_t i = 0; i < kernel.count; ++i)
    if (i / kernel.inner % kernel.channels == channel) weights[i] = 0;
}

/* Writes the `count` integers of a kernel at a width. Returns KQF_OK, or KQF_NO_WIDTH. */
static int kqf_weights(const kqf_bundle *bundle, uint32_t index, int bits, int8_t *weights) {
  if (!kqf_has(bundle, index, bits)) return KQF_NO_WIDTH;
  kqf_kernel kernel = kqf_kernel_at(bundle, index);
  const uint8_t *width = bundle->widths[bits].data, *codes = bundle->codes.data + kernel.place;
  const uint8_t *multipliers = width + kqf_start(bundle), *dead = width + kqf_dead(bundle);
  uint32_t first = kqf_first_channel(bundle, index), channel = 0, left = kernel.inner;
  for (uint32_t i = 0; i < kernel.count; ++i) {
    int8_t value = kqf_integer(codes[i], width[index]);
    weights[i] = multipliers[2 * (first + channel) + 1] >> 7 ? (int8_t)-value : value;
    if (--left == 0) {
      left = kernel.inner;
      channel = channel + 1 == kernel.channels ? 0 : channel + 1;
    }
  }
  for (uint32_t i = 0; i < kqf_u32(dead); ++i) {
    uint32_t channel_of_all = kqf_u32(dead + 4 + 4 * i);
    if (channel_of_all >= first && channel_of_all - first < kernel.channels)
      kqf_clear_channel(kernel, channel_of_all - first, weights);
  }
  return KQF_OK;
}

/* Writes the signed float32 scales of the `channels` of a kernel at a width, as in the bundle. */
static int kqf_multipliers(const kqf_bundle *bundle, uint32_t index, int bits, float *multipliers) {
  if (!kqf_has(bundle, index, bits)) return KQF_NO_WIDTH;
  kqf_kernel kernel = kqf_kernel_at(bundle, index);
  const uint8_t *p = bundle->widths[bits].data + kqf_start(bundle) + 2 * kqf_first_channel(bundle, index);
  for (uint32_t i = 0; i < kernel.channels; ++i) {
    union { uint32_t bits; float value; } word;
    word.bits = ((uint32_t)p[2 * i] | (uint32_t)p[2 * i + 1] << 8) << 16;
    multipliers[i] = word.value;
  }
  return KQF_OK;
}

#endif /* KQUANT_FAMILY_H_ */
