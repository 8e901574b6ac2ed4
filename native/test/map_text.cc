#include "test/map_text.h"

#include <sys/mman.h>

#include <cstdio>
#include <sstream>
#include <vector>

#include "test/test.h"

namespace replpage::testing {
namespace {

struct MapLine {
  uint64_t start, end;
  std::string what;
};

std::string joined(const std::vector<MapLine>& lines) {
  std::vector<MapLine> all;
  for (const MapLine& line : lines) {
    if (!all.empty() && all.back().end == line.start && all.back().what == line.what) {
      all.back().end = line.end;
    } else {
      all.push_back(line);
    }
  }
  std::ostringstream text;
  for (const MapLine& line : all) {
    text << std::hex << line.start << "-" << line.end << " " << line.what << "\n";
  }
  return text.str();
}

std::string what_of(uint32_t prot, bool shared) {
  std::string text;
  text += (prot & PROT_READ) != 0 ? 'r' : '-';
  text += (prot & PROT_WRITE) != 0 ? 'w' : '-';
  text += (prot & PROT_EXEC) != 0 ? 'x' : '-';
  text += shared ? 's' : 'p';
  return text;
}

}  // namespace

std::string maps_of_image(const ProcessImage& process) {
  std::vector<MapLine> lines;
  for (const MappingImage& mapping : process.mappings) {
    const bool shared = mapping.kind == MappingKind::kFileShared ||
                        mapping.kind == MappingKind::kSharedObject ||
                        mapping.kind == MappingKind::kSysvShared;
    lines.push_back({mapping.start, mapping.end, what_of(mapping.prot, shared)});
  }
  return joined(lines);
}

std::string maps_of_text(const std::string& maps) {
  std::vector<MapLine> lines;
  std::istringstream text(maps);
  for (std::string line; std::getline(text, line);) {
    MapLine parsed{};
    char flags[5] = {};
    CHECK(std::sscanf(line.c_str(), "%lx-%lx %4s", &parsed.start, &parsed.end, flags) == 3);
    parsed.what = flags;
    lines.push_back(parsed);
  }
  return joined(lines);
}

}  // namespace replpage::testing
