/* stb.h: the opt-in stb_image decoder, JPEG and PNG only; absent unless the build found its header. */
#ifndef BVL_STB_H
#define BVL_STB_H

#include "../core.h"

/* The header's version, "2.30", or NULL when it was not built in. */
const char *bvl_stb_version(void);

/* Size of an encoded picture, refused above max_pixels before anything is allocated. */
bvl_status bvl_stb_info(const uint8_t *bytes, int64_t length, int64_t max_pixels, int64_t *height,
                        int64_t *width, bvl_error *err);
/* RGB pixels into out [height, width, 3]. Accepts truncated files; pixels of JPEG differ from libjpeg's. */
bvl_status bvl_stb_decode(uint8_t *out, const uint8_t *bytes, int64_t length, int64_t height, int64_t width,
                          bvl_error *err);

#endif
