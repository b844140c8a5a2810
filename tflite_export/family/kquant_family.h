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

#define KQF_VERSION_READ 2

typedef struct {
  const uint8_t *data;
  uint32_t length;
} kqf_section;

typedef struct {
  const uint8_t *data;
  kqf_section codes, kernels, widths[9]; /* widths[bits]; of length 0 where there is none */
  uint32_t kernel_count;
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

/* A width's section: for each kernel bits, bytes of a difference, base (u16); dead channels; differences. */
static const uint8_t *kqf_record(kqf_section width, uint32_t index) { return width.data + 4 * index; }

static uint32_t kqf_base(const uint8_t *record) { return (uint32_t)record[2] | (uint32_t)record[3] << 8; }

static uint32_t kqf_dead(const kqf_bundle *bundle) { return 4 * bundle->kernel_count; }

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
  return channels > 0xFFFFFFFFu ? KQF_DAMAGED : KQF_OK;
}

static int kqf_check_width(const kqf_bundle *bundle, kqf_section width) {
  uint64_t dead = kqf_dead(bundle), bytes = 0;
  if (width.length % 4 || dead + 4 > width.length) return KQF_DAMAGED;
  for (uint32_t i = 0; i < bundle->kernel_count; ++i) {
    const uint8_t *record = kqf_record(width, i);
    if (record[0] < 1 || record[0] > 8 || record[1] > 2) return KQF_DAMAGED;
    bytes += (uint64_t)record[1] * kqf_kernel_at(bundle, i).channels;
  }
  uint64_t lists = dead + 4 + 4 * (uint64_t)kqf_u32(width.data + dead);
  return lists + bytes > width.length ? KQF_DAMAGED : KQF_OK;
}

/* Opens a bundle of `size` bytes, which stays where it is. Returns KQF_OK or what is wrong. */
static int kqf_open(kqf_bundle *bundle, const uint8_t *data, size_t size) {
  static const kqf_bundle empty;
  *bundle = empty;
  if (size < 8 || data[0] != 'K' || data[1] != 'Q' || data[2] != 'F' || data[3] != 'B') return KQF_NO_BUNDLE;
  if (size > 0xFFFFFFFFu) return KQF_DAMAGED;
  if ((data[4] | data[5] << 8) != KQF_VERSION_READ) return KQF_VERSION;
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

/* Multipliers of a kernel at a width while they are read: base plus difference, plus those of the widest. */
typedef struct {
  const uint8_t *own, *widest; /* differences; widest is NULL for the widest width itself */
  uint32_t base, own_bytes, widest_bytes;
} kqf_words;

/* Returns the differences of a kernel in the section of a width. */
static const uint8_t *kqf_differences(const kqf_bundle *bundle, kqf_section width, uint32_t index) {
  const uint8_t *dead = width.data + kqf_dead(bundle), *place = dead + 4 + 4 * (size_t)kqf_u32(dead);
  for (uint32_t i = 0; i < index; ++i)
    place += (size_t)kqf_record(width, i)[1] * kqf_kernel_at(bundle, i).channels;
  return place;
}

static kqf_words kqf_words_of(const kqf_bundle *bundle, uint32_t index, int bits) {
  int widest = 8;
  while (!bundle->widths[widest].length) --widest;
  const uint8_t *own = kqf_record(bundle->widths[bits], index), *wide = kqf_record(bundle->widths[widest], index);
  kqf_words words = {kqf_differences(bundle, bundle->widths[bits], index), NULL, kqf_base(own), own[1], 0};
  if (bits != widest) {
    words.widest = kqf_differences(bundle, bundle->widths[widest], index);
    words.base += kqf_base(wide);
    words.widest_bytes = wide[1];
  }
  return words;
}

static uint32_t kqf_number(const uint8_t *list, uint32_t bytes, uint32_t i) {
  if (bytes == 0) return 0;
  return bytes == 1 ? list[i] : (uint32_t)list[2 * i] | (uint32_t)list[2 * i + 1] << 8;
}

/* Returns the word of a channel, the first half of a float32. */
static uint32_t kqf_word(kqf_words words, uint32_t channel) {
  uint32_t word = words.base + kqf_number(words.own, words.own_bytes, channel);
  return (word + kqf_number(words.widest, words.widest_bytes, channel)) & 0xFFFFu;
}

static void kqf_clear_channel(kqf_kernel kernel, uint32_t channel, int8_t *weights) {
  for (uint32_t i = 0; i < kernel.count; ++i)
    if (i / kernel.inner % kernel.channels == channel) weights[i] = 0;
}

/* Writes the `count` integers of a kernel at a width. Returns KQF_OK, or KQF_NO_WIDTH. */
static int kqf_weights(const kqf_bundle *bundle, uint32_t index, int bits, int8_t *weights) {
  if (!kqf_has(bundle, index, bits)) return KQF_NO_WIDTH;
  kqf_kernel kernel = kqf_kernel_at(bundle, index);
  const uint8_t *codes = bundle->codes.data + kernel.place, *dead = bundle->widths[bits].data + kqf_dead(bundle);
  kqf_words words = kqf_words_of(bundle, index, bits);
  int own_bits = kqf_record(bundle->widths[bits], index)[0];
  uint32_t first = kqf_first_channel(bundle, index), channel = 0, left = kernel.inner;
  for (uint32_t i = 0; i < kernel.count; ++i) {
    int8_t value = kqf_integer(codes[i], own_bits);
    weights[i] = kqf_word(words, channel) >> 15 ? (int8_t)-value : value;
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
  kqf_words words = kqf_words_of(bundle, index, bits);
  for (uint32_t i = 0; i < kernel.channels; ++i) {
    union { uint32_t bits; float value; } word;
    word.bits = kqf_word(words, i) << 16;
    multipliers[i] = word.value;
  }
  return KQF_OK;
}

#endif /* KQUANT_FAMILY_H_ */
