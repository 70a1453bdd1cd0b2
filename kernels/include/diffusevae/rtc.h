// The C library's names that row.h and philox.h need where there is no C library. NVRTC compiles without headers.
#ifndef DIFFUSEVAE_RTC_H
#define DIFFUSEVAE_RTC_H

typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
typedef unsigned long long uintptr_t;

#endif  // DIFFUSEVAE_RTC_H
