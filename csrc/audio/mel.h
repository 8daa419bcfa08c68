/* mel.h: sounds to log-mel spectrograms. */
#ifndef BVL_MEL_H
#define BVL_MEL_H

#include "../kernels/kernels.h"

/* What a spectrogram is made of; borrowed arrays. */
typedef struct {
    const double *window;  /* [frame] */
    const double *filters; /* [length / 2 + 1, mels] */
    int64_t frame, length, hop, mels;
    bool center;      /* frame i is about sample i * hop, the sound mirrored at its ends */
    bool mels_first;  /* out [mels, frames], else [frames, mels] */
    bool remove_mean; /* of each frame */
    bool amplitudes;  /* scale * log(sums of amplitudes + floor) */
    double emphasis, floor, scale;
} bvl_mel_settings;

/* Whether settings and a sound of that many samples go together; what follows takes them for checked. */
bvl_status bvl_mel_check(const bvl_mel_settings *settings, int64_t samples, bvl_error *err);
/* Frames of such a sound. */
int64_t bvl_mel_frame_count(const bvl_mel_settings *settings, int64_t samples);

/* out[frames, mels] = scale * log(max(energies, floor)) of x[samples], on at most `threads` threads. */
bvl_status bvl_mel_spectrogram(float *out, const float *x, int64_t samples, const bvl_mel_settings *settings,
                               int threads, bvl_error *err);

#endif
