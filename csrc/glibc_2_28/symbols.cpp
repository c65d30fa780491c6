// What a portable library must bring itself, since glibc 2.28 and the libstdc++ of its time lack it. Nothing of it is exported.
#include <exception>
#include <new>

// Whether the process has one thread, so that reference counts need no atomic operations: we never say so.
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;

namespace std {

void __throw_bad_array_new_length() { throw bad_array_new_length(); }

// The inline members call these two; the members themselves, which every libstdc++ exports, do the same.
extern "C" void bnb_exception_ptr_destructor(void*) noexcept __asm__("_ZNSt15__exception_ptr13exception_ptrD1Ev");
extern "C" void bnb_exception_ptr_copy(void*, const void*) noexcept __asm__("_ZNSt15__exception_ptr13exception_ptrC1ERKS0_");
void __exception_ptr::exception_ptr::_M_release() noexcept { bnb_exception_ptr_destructor(this); }
void __exception_ptr::exception_ptr::_M_addref() noexcept {
  void* never_destroyed;
  bnb_exception_ptr_copy(&never_destroyed, this);
}

}  // namespace std
