// What the AMX files share: after ../tiles_amx.h, inside their region.

constexpr int kRows = 16, kTileBytes = 1024;
static_assert(kRows == kPanel);

void begin() { _tile_loadconfig(&kConfig); }
void end() { _tile_release(); }
