// Included before each file of a portable library, which must run with glibc 2.28 and the libstdc++ of its time.
#pragma once

// String streams have members that are newer: ours are instantiated here, and not taken from the library.
#include <istream>
#include <ostream>
#pragma push_macro("_GLIBCXX_EXTERN_TEMPLATE")
#undef _GLIBCXX_EXTERN_TEMPLATE
#define _GLIBCXX_EXTERN_TEMPLATE 0
#include <sstream>
#pragma pop_macro("_GLIBCXX_EXTERN_TEMPLATE")

// Of functions whose newest version is newer, the first.
#define BNB_OLDEST(function) __asm__(".symver " #function ", " #function "@GLIBC_2.2.5")
BNB_OLDEST(dlerror);
BNB_OLDEST(dlopen);
BNB_OLDEST(dlsym);
BNB_OLDEST(pow);
BNB_OLDEST(pthread_mutex_trylock);
