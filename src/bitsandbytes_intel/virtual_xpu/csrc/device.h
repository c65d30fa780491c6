// What fallback.cpp and capi.cpp need of the device: its default generator and the state of its registration.
#pragma once

#include <ATen/core/Generator.h>

namespace vxpu {

// Throws unless the index means the one device.
void check_index(c10::DeviceIndex index);
const at::Generator& default_generator();
// The CPU generator that numbers come from when an XPU generator is given.
at::Generator borrowed_generator(const at::Generator& generator);
// False when torch had asked for the XPU hooks before this library came: it then keeps the empty ones for ever.
bool hooks_active();

}  // namespace vxpu
