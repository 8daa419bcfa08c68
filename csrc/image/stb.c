/* stb.c: stb_image confined: JPEG and PNG from memory only, its size read first, bounded dimensions. */
#include "stb.h"

#include <string.h>

#include "../arena.h"

#if defined(BVL_HAVE_STB)
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_JPEG
#define STBI_ONLY_PNG
#define STBI_NO_STDIO
#define STBI_NO_HDR
#define STBI_NO_LINEAR
#define STBI_MAX_DIMENSIONS 16384
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wall"
#pragma GCC diagnostic ignored "-Wextra"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <stb/stb_image.h>
#pragma GCC diagnostic pop
/* reported at the end of the file, so it stays ignored to there: declarations of what was left out */
#pragma GCC diagnostic ignored "-Wunused-function"

const char *bvl_stb_version(void) {
    return BVL_STB_VERSION;
}

bvl_status bvl_stb_info(const uint8_t *bytes, int64_t length, int64_t max_pixels, int64_t *height,
                        int64_t *width, bvl_error *err) {
    int w, h, channels;
    if (length < 1 || length > 1 << 30 || !stbi_info_from_memory(bytes, (int)length, &w, &h, &channels))
        return bvl_fail(err, BVL_INVALID, "stb_image: not a JPEG or PNG it reads");
    if ((int64_t)w * h > max_pixels)
        return bvl_fail(err, BVL_INVALID, "stb_image: %d x %d pixels, expected at most %lld", w, h,
                        (long long)max_pixels);
    *height = h;
    *width = w;
    return BVL_OK;
}

bvl_status bvl_stb_decode(uint8_t *out, const uint8_t *bytes, int64_t length, int64_t height, int64_t width,
                          bvl_error *err) {
    int w, h, channels;
    stbi_uc *pixels = stbi_load_from_memory(bytes, (int)length, &w, &h, &channels, 3);
    if (!pixels) return bvl_fail(err, BVL_INVALID, "stb_image: %s", stbi_failure_reason());
    const bool same = w == width && h == height;
    if (same) memcpy(out, pixels, (size_t)(height * width * 3));
    stbi_image_free(pixels);
    return same ? BVL_OK : bvl_fail(err, BVL_INVALID, "stb_image: the size changed while decoding");
}
#else
const char *bvl_stb_version(void) {
    return NULL;
}

bvl_status bvl_stb_info(const uint8_t *bytes, int64_t length, int64_t max_pixels, int64_t *height,
                        int64_t *width, bvl_error *err) {
    (void)bytes, (void)length, (void)max_pixels, (void)height, (void)width;
    return bvl_fail(err, BVL_MISSING, "stb_image: not built in: install its header (libstb-dev) and rebuild");
}

bvl_status bvl_stb_decode(uint8_t *out, const uint8_t *bytes, int64_t length, int64_t height, int64_t width,
                          bvl_error *err) {
    (void)out, (void)bytes, (void)length, (void)height, (void)width;
    return bvl_fail(err, BVL_MISSING, "stb_image: not built in");
}
#endif
