"""The benchmarks behind ``python -m bitsandbytes_intel bench``. Nothing here prints."""
