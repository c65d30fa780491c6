// Every tile register holds 16 rows of 64 bytes: inside the region of AMX.

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Constant data: the compiler does not know that all of it is read, and would leave out what it writes to a local one.
constexpr TileConfig kConfig;
