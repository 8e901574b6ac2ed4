// Memory maps, page lists and the choice of what a last copy leaves behind.
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "core/memory/last_copy_plan.h"
#include "core/memory/map_line.h"
#include "core/memory/memory_map.h"
#include "core/memory/page_ranges.h"
#include "core/memory/zero_page.h"
#include "test/random.h"
#include "test/test.h"

namespace replpage {
namespace {

const KernelMounts kMounts = {.memory_files = makedev(0, 1)};

struct Classified {
  MappingImage image;
  std::string refused;
};

Classified classify(const std::string& text) {
  Classified result;
  const auto line = parse_map_line(text);
  if (!line) throw std::runtime_error("not a line: " + text);
  const auto refusal = classify_mapping(*line, kMounts, result.image);
  if (refusal) result.refused = refusal->kind;
  return result;
}

constexpr uint64_t page(uint64_t number) { return number * kPageSize; }

MappingImage anonymous(uint64_t first_page, uint64_t pages) {
  MappingImage mapping;
  mapping.start = page(first_page);
  mapping.end = page(first_page + pages);
  mapping.prot = PROT_READ | PROT_WRITE;
  return mapping;
}

TEST(map_lines_are_told_apart_by_what_they_map) {
  const auto kind = [](const char* text) { return classify(text).image.kind; };
  CHECK(kind("7f00-8000 rw-p 00000000 00:00 0 ") == MappingKind::kAnonymous);
  CHECK(kind("7000-8000 rw-p 00000000 00:00 0     [heap]") == MappingKind::kAnonymous);
  CHECK(kind("7000-8000 rw-p 00000000 00:05 4     /dev/zero") == MappingKind::kAnonymous);
  CHECK(kind("7000-8000 r--p 00001000 fe:00 12 /usr/bin/x") == MappingKind::kFilePrivate);
  CHECK(kind("7000-8000 rw-s 00001000 fe:00 12 /tmp/x") == MappingKind::kFileShared);
  CHECK(kind("7000-8000 rw-s 00000000 00:18 12 /dev/shm/x") == MappingKind::kFileShared);
  CHECK(kind("7000-8000 rw-s 00000000 00:01 9 /dev/zero (deleted)") == MappingKind::kSharedObject);
  CHECK(kind("7000-8000 rw-s 00000000 00:01 9 /memfd:a (deleted)") == MappingKind::kSharedObject);
  CHECK(kind("7000-8000 rw-p 00000000 00:01 9 /memfd:a (deleted)") == MappingKind::kMemfdPrivate);
  CHECK(kind("7000-8000 rw-s 00000000 00:01 9 [anon_shmem:x]") == MappingKind::kSharedObject);
  CHECK(kind("7000-8000 rw-s 00000000 00:01 9 /SYSV0001 (deleted)") == MappingKind::kSysvShared);
  CHECK(kind("7000-8000 r-xp 00000000 00:00 0 [vdso]") == MappingKind::kVdso);
  CHECK(kind("7000-8000 r--p 00000000 00:00 0 [vvar_vclock]") == MappingKind::kVvar);
}

TEST(map_lines_keep_file_offset_name_and_protection) {
  const MappingImage file =
      classify("7000-9000 r-xp 0001f000 fe:01 77   /srv/a b\\012c (deleted)").image;
  CHECK_EQUAL(file.start, 0x7000u);
  CHECK_EQUAL(file.end, 0x9000u);
  CHECK_EQUAL(file.prot, static_cast<uint32_t>(PROT_READ | PROT_EXEC));
  CHECK_EQUAL(file.offset, 0x1f000u);
  CHECK_EQUAL(file.device, makedev(0xfe, 1));
  CHECK_EQUAL(file.inode, 77u);
  CHECK_EQUAL(file.path, std::string("/srv/a b\nc (deleted)"));
  CHECK_EQUAL(classify("7-8 rw-p 0 00:00 0 [anon:my name]").image.anon_name,
              std::string("my name"));
  CHECK_EQUAL(classify("7-8 rw-s 0 00:01 32770 /SYSV00000000 (deleted)").image.shm_id, 32770);
  CHECK_EQUAL(classify("7-8 rw-s 0 00:01 3 /memfd:na me (deleted)").image.path,
              std::string("na me"));
  CHECK((classify("7-8 rw-p 0 00:00 0 [stack]").image.flags & kGrowsDown) != 0);
  CHECK(!parse_map_line("Rss:        4 kB"));
  CHECK(!parse_map_line(""));
  CHECK(!parse_map_line("7000-8000"));
}

TEST(mappings_that_cannot_be_replicated_are_refused_by_kind) {
  const auto refused = [](const char* text) { return classify(text).refused; };
  CHECK_EQUAL(refused("7-8 rw-s 0 00:05 9 /dev/mem"), std::string("device mapping"));
  CHECK_EQUAL(refused("7-8 rw-s 0 00:0e 9 /[aio] (deleted)"), std::string("AIO ring"));
  CHECK_EQUAL(refused("7-8 rw-s 0 00:0e 9 anon_inode:[io_uring]"), std::string("io_uring ring"));
  CHECK_EQUAL(refused("7-8 rw-s 0 00:0e 9 anon_inode:[perf_event]"), std::string("perf ring"));
  CHECK_EQUAL(refused("7-8 rw-s 0 00:0e 9 anon_inode:bpf-map"),
              std::string("kernel object mapping"));
  CHECK_EQUAL(refused("7-8 rw-p 0 00:0f 9 /anon_hugepage (deleted)"),
              std::string("huge page mapping"));
  CHECK_EQUAL(refused("7-8 rw-s 0 00:0f 9 /memfd:huge (deleted)"),
              std::string("huge page mapping"));
  CHECK_EQUAL(refused("7-8 r-xp 0 00:00 0 [uprobes]"), std::string("special mapping"));
  CHECK_EQUAL(refused("7-8 rw-s 0 00:01 3 /memfd:fine (deleted)"), std::string());
}

TEST(vm_flags_become_mapping_flags_or_refusals) {
  MappingImage image;
  CHECK(!apply_vm_flags(" rd wr mr mw me gd lo ac dd hg ", image));
  CHECK_EQUAL(image.flags, static_cast<uint32_t>(kGrowsDown | kLocked | kDontDump | kHugePage));
  CHECK(apply_vm_flags(" rd wr io pf dd ", image).has_value());
  image.kind = MappingKind::kVvar;
  CHECK(!apply_vm_flags(" rd mr pf io de dd ", image));
  image.kind = MappingKind::kAnonymous;
  CHECK(apply_vm_flags(" rd wr ht ", image).has_value());
  CHECK(!apply_vm_flags("", image));
}

TEST(own_memory_map_has_text_stack_and_vdso) {
  Refusals refusals;
  const auto plain = read_memory_map(::getpid(), {}, false, &refusals).value();
  const auto flagged = read_memory_map(::getpid(), {}, true, &refusals).value();
  CHECK(refusals.empty());
  CHECK(std::is_sorted(plain.begin(), plain.end(),
                       [](const auto& a, const auto& b) { return a.end <= b.start; }));
  const auto has = [&](auto&& wanted) { return std::any_of(plain.begin(), plain.end(), wanted); };
  const auto address = reinterpret_cast<uint64_t>(&refusals);
  CHECK(has([&](const MappingImage& m) { return m.range().contains(address); }));
  CHECK(has([](const MappingImage& m) { return m.kind == MappingKind::kFilePrivate; }));
  CHECK(flagged.size() >= plain.size());
}

TEST(flags_of_a_known_mapping_last_when_it_grows) {
  char* area = static_cast<char*>(
      ::mmap(nullptr, page(4), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  CHECK(::madvise(area, page(4), MADV_DONTFORK) == 0);
  const auto known = read_memory_map(::getpid(), {}, true, nullptr).value();
  const auto again = read_memory_map(::getpid(), known, false, nullptr).value();
  const auto without = read_memory_map(::getpid(), {}, false, nullptr).value();
  const auto flags_in = [area](const std::vector<MappingImage>& list) {
    for (const MappingImage& m : list) {
      if (m.range().contains(reinterpret_cast<uint64_t>(area))) return m.flags;
    }
    return 0u;
  };
  ::munmap(area, page(4));
  CHECK((flags_in(known) & kDontFork) != 0);
  CHECK((flags_in(again) & kDontFork) != 0);
  CHECK((flags_in(without) & kDontFork) == 0);
}

TEST(a_process_that_is_gone_has_no_memory_map) {
  CHECK(!read_memory_map(0x3ffffff, {}, false, nullptr));
}

TEST(range_lists_are_subtracted_intersected_and_united) {
  const PageRanges left = {{page(0), page(4)}, {page(6), page(8)}, {page(10), page(20)}};
  const PageRanges right = {{page(1), page(2)}, {page(3), page(7)}, {page(12), page(13)}};
  CHECK(subtract_ranges(left, right) == (PageRanges{{page(0), page(1)},
                                                    {page(2), page(3)},
                                                    {page(7), page(8)},
                                                    {page(10), page(12)},
                                                    {page(13), page(20)}}));
  CHECK(intersect_ranges(left, right) ==
        (PageRanges{
            {page(1), page(2)}, {page(3), page(4)}, {page(6), page(7)}, {page(12), page(13)}}));
  CHECK(unite_ranges(left, right) == (PageRanges{{page(0), page(8)}, {page(10), page(20)}}));
  CHECK(subtract_ranges(left, {}) == left);
  CHECK(subtract_ranges({}, right).empty());
  CHECK(intersect_ranges(left, {}).empty());
  CHECK_EQUAL(total_bytes(left), page(16));
}

TEST(range_lists_agree_with_sets_of_pages) {
  testing::Random random(1);
  for (int round = 0; round < 300; ++round) {
    PageRanges lists[2];
    bool in[2][64] = {};
    for (int l = 0; l < 2; ++l) {
      for (uint64_t p = random(4); p < 60; p += 1 + random(6)) {
        const uint64_t end = p + 1 + random(4);
        lists[l].push_back({page(p), page(end)});
        for (; p < end; ++p) in[l][p] = true;
      }
    }
    const PageRanges results[3] = {subtract_ranges(lists[0], lists[1]),
                                   intersect_ranges(lists[0], lists[1]),
                                   unite_ranges(lists[0], lists[1])};
    for (uint64_t p = 0; p < 64; ++p) {
      const bool expected[3] = {in[0][p] && !in[1][p], in[0][p] && in[1][p], in[0][p] || in[1][p]};
      for (int i = 0; i < 3; ++i) {
        const bool found = std::any_of(results[i].begin(), results[i].end(),
                                       [p](PageRange r) { return r.contains(page(p)); });
        CHECK_EQUAL(found, expected[i]);
      }
    }
  }
}

TEST(a_page_is_zero_only_when_every_byte_is) {
  alignas(64) static uint8_t content[kPageSize];
  CHECK(is_zero_page(content));
  for (size_t at = 0; at < kPageSize; at += 61) {
    content[at] = 1;
    CHECK(!is_zero_page(content));
    content[at] = 0;
  }
  content[kPageSize - 1] = 0x80;
  CHECK(!is_zero_page(content));
}

TEST(the_last_copy_leaves_the_densest_parts_behind) {
  constexpr uint64_t kPart = kLazyPartBytes / kPageSize;
  const std::vector<MappingImage> mappings = {anonymous(4 * kPart, 8 * kPart)};
  PageRanges dirty;
  for (uint64_t i = 0; i < 10; ++i)
    dirty.push_back({page(4 * kPart + 2 * i), page(4 * kPart + 2 * i + 1)});
  dirty.push_back({page(6 * kPart), page(7 * kPart)});
  const LastCopyPlan plan = plan_last_copy(mappings, dirty, 100);
  CHECK(plan.lazy == (PageRanges{{page(6 * kPart), page(7 * kPart)}}));
  CHECK_EQUAL(total_bytes(plan.copied), page(10));
  const LastCopyPlan all = plan_last_copy(mappings, dirty, 10000);
  CHECK(all.lazy.empty());
  CHECK(all.copied == dirty);
  const LastCopyPlan none = plan_last_copy(mappings, dirty, 0);
  CHECK(none.copied.empty());
}

TEST(the_last_copy_never_leaves_stacks_and_file_pages_behind) {
  MappingImage file = anonymous(512, 1024);
  file.kind = MappingKind::kFilePrivate;
  MappingImage stack = anonymous(4096, 1024);
  stack.flags = kGrowsDown;
  const PageRanges dirty = {{page(512), page(1536)}, {page(4096), page(5120)}};
  const LastCopyPlan plan = plan_last_copy(std::vector<MappingImage>{file, stack}, dirty, 10);
  CHECK(plan.lazy.empty());
  CHECK(plan.copied == dirty);
}

TEST(lazy_ranges_of_a_mapping_are_bounded_and_stay_inside_it) {
  constexpr uint64_t kPart = kLazyPartBytes / kPageSize;
  const std::vector<MappingImage> mappings = {anonymous(3, 400 * kPart), anonymous(500 * kPart, 7)};
  PageRanges dirty;
  for (uint64_t i = 0; i < 200; ++i)
    dirty.push_back({page(2 * i * kPart + 5), page(2 * i * kPart + 100)});
  dirty.push_back({page(500 * kPart), page(500 * kPart + 7)});
  const LastCopyPlan plan = plan_last_copy(mappings, dirty, 50);
  CHECK(plan.lazy.size() <= kLazyRangesPerMapping);
  CHECK(!plan.lazy.empty());
  CHECK(plan.lazy.front().start >= mappings[0].start);
  CHECK(plan.lazy.back().end <= mappings[0].end);
  CHECK(plan.copied == (PageRanges{{page(500 * kPart), page(500 * kPart + 7)}}));
}

}  // namespace
}  // namespace replpage
