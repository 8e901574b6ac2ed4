// Random operations on mappings of every kind, checked against a model: writes, discards
// (MADV_DONTNEED of anonymous memory and of private file pages, MADV_FREE, MADV_REMOVE), munmap and
// mmap in place, mremap to another place and in place, mprotect, writes through another mapping and
// through the descriptor, and now and then a child that checks its copy of it all.
#include <sys/wait.h>

#include "victim.h"

enum { kSlots = 16, kWords = 4, kFilePages = 512, kMaxPages = kFilePages };
enum Kind { kUnmapped, kAnonymous, kPrivateFile, kShared, kMemfd, kKinds };
static const char* const kind_names[] = {"nothing", "anonymous", "private file", "shared anonymous",
                                         "memfd"};
// What a page holds: all words 0, the file's own content, a tag, or after MADV_FREE either.
enum { kZero = 0, kFile = 1, kFirstTag = 2 };

struct Slot {
  enum Kind kind;
  bool read_only;
  char* at;     // where the slot is mapped
  char* alias;  // memfd: a second mapping
  int memfd;
  size_t pages;
  uint64_t tags[kMaxPages];
  bool maybe_zero[kMaxPages];
};

static struct Slot slots[kSlots];
static size_t slot_pages = 64;
static char* arena;    // every slot has its place here, so that nothing else is mapped into a hole
static char* aliases;  // and its second mapping here
static int file;
static uint64_t random_state = 88172645463325252u;
static uint64_t next_tag = kFirstTag;
static const size_t offsets[kWords] = {0, 1024, 2056, kPage - 8};

static size_t pick(size_t below) { return victim_random(&random_state) % below; }

static char* home(int slot) { return arena + (size_t)slot * kMaxPages * kPage; }

static char* alias_home(int slot) { return aliases + (size_t)slot * kMaxPages * kPage; }

static uint64_t file_word(size_t page, int word) { return 0xf11e000000000000u + page * 8 + word; }

static void write_page(char* page, uint64_t tag) {
  for (int word = 0; word < kWords; word++) {
    *(volatile uint64_t*)(page + offsets[word]) = tag * 8 + word;
  }
}

static void map_slot(int number, enum Kind kind) {
  struct Slot* slot = &slots[number];
  size_t bytes = slot_pages * kPage;
  int flags = MAP_FIXED | (kind == kShared        ? MAP_SHARED | MAP_ANONYMOUS
                           : kind == kMemfd       ? MAP_SHARED
                           : kind == kPrivateFile ? MAP_PRIVATE
                                                  : MAP_PRIVATE | MAP_ANONYMOUS);
  slot->memfd = -1;
  if (kind == kMemfd) {
    slot->memfd = memfd_create("victim", MFD_CLOEXEC);
    VICTIM_CHECK(slot->memfd >= 0 && ftruncate(slot->memfd, (off_t)bytes) == 0, "memfd");
    char* at = alias_home(number);
    slot->alias = mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, slot->memfd, 0);
    VICTIM_CHECK(slot->alias == at, "mmap");
  }
  int fd = kind == kMemfd ? slot->memfd : kind == kPrivateFile ? file : -1;
  slot->at = mmap(home(number), bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
  VICTIM_CHECK(slot->at == home(number), "mmap of %s", kind_names[kind]);
  slot->kind = kind;
  slot->read_only = false;
  slot->pages = slot_pages;
  for (size_t page = 0; page < kMaxPages; page++) {
    slot->tags[page] = kind == kPrivateFile ? kFile : kZero;
    slot->maybe_zero[page] = false;
  }
}

static void unmap_slot(int number) {
  struct Slot* slot = &slots[number];
  if (slot->kind == kMemfd) {
    size_t bytes = slot_pages * kPage;
    mmap(slot->alias, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    close(slot->memfd);
  }
  if (slot->kind != kUnmapped) {
    VICTIM_CHECK(munmap(slot->at, slot->pages * kPage) == 0, "munmap");
  }
  slot->kind = kUnmapped;
}

static void check_page(int number, size_t page) {
  struct Slot* slot = &slots[number];
  uint64_t tag = slot->tags[page];
  bool zero = false;
  for (int word = 0; word < kWords; word++) {
    char* at = slot->at + page * kPage + offsets[word];
    uint64_t value = *(volatile uint64_t*)at;
    uint64_t expected = tag == kZero   ? 0
                        : tag == kFile ? file_word(page, word)
                                       : tag * 8 + (uint64_t)word;
    if (word == 0 && slot->maybe_zero[page] && value == 0) {
      zero = true;
    }
    VICTIM_CHECK(value == (zero ? 0 : expected), "%s page %zu of slot %d at %p: %#lx, not %#lx",
                 kind_names[slot->kind], page, number, at, value, expected);
  }
}

static void check_all(void) {
  for (int number = 0; number < kSlots; number++) {
    for (size_t page = 0; slots[number].kind != kUnmapped && page < slots[number].pages; page++) {
      check_page(number, page);
    }
  }
}

static void set_tag(struct Slot* slot, size_t page, uint64_t tag) {
  slot->tags[page] = tag;
  slot->maybe_zero[page] = false;
}

static void write_some(struct Slot* slot) {
  for (size_t count = pick(8) + 1; count > 0 && !slot->read_only; count--) {
    size_t page = pick(slot->pages);
    uint64_t tag = next_tag++;
    if (slot->kind == kMemfd && pick(3) == 0) {
      write_page(slot->alias + page * kPage, tag);
    } else if (slot->kind == kMemfd && pick(2) == 0) {
      for (int word = 0; word < kWords; word++) {
        uint64_t value = tag * 8 + (uint64_t)word;
        VICTIM_CHECK(pwrite(slot->memfd, &value, 8, (off_t)(page * kPage + offsets[word])) == 8,
                     "pwrite");
      }
    } else {
      write_page(slot->at + page * kPage, tag);
    }
    set_tag(slot, page, tag);
  }
}

static void discard_some(struct Slot* slot) {
  size_t first = pick(slot->pages);
  size_t count = pick(slot->pages - first) + 1;
  char* at = slot->at + first * kPage;
  if (slot->kind == kMemfd && !slot->read_only) {
    VICTIM_CHECK(madvise(at, count * kPage, MADV_REMOVE) == 0, "MADV_REMOVE");
    for (size_t page = first; page < first + count; page++) {
      set_tag(slot, page, kZero);
    }
  } else if (slot->kind == kAnonymous && pick(2) == 0) {
    VICTIM_CHECK(madvise(at, count * kPage, MADV_FREE) == 0, "MADV_FREE");
    for (size_t page = first; page < first + count; page++) {
      slot->maybe_zero[page] = true;
    }
  } else if (slot->kind == kAnonymous || slot->kind == kPrivateFile) {
    VICTIM_CHECK(madvise(at, count * kPage, MADV_DONTNEED) == 0, "MADV_DONTNEED");
    for (size_t page = first; page < first + count; page++) {
      set_tag(slot, page, slot->kind == kAnonymous ? kZero : kFile);
    }
  }
}

// Moves a slot's mapping into the place of another, as realloc does with large blocks.
static void move_slot(int from, int to) {
  if (from == to || slots[from].kind == kUnmapped) {
    return;
  }
  unmap_slot(to);
  size_t bytes = slots[from].pages * kPage;
  char* moved =
      mremap(slots[from].at, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, (void*)home(to));
  VICTIM_CHECK(moved == home(to), "mremap");
  slots[to] = slots[from];
  slots[to].at = moved;
  if (slots[to].kind == kMemfd) {
    size_t all = slot_pages * kPage;
    slots[to].alias =
        mremap(slots[from].alias, all, all, MREMAP_MAYMOVE | MREMAP_FIXED, (void*)alias_home(to));
    VICTIM_CHECK(slots[to].alias == alias_home(to), "mremap of the second mapping");
  }
  slots[from].kind = kUnmapped;
}

// Shrinks a mapping, or grows it again: grown anonymous memory is zero.
static void resize_slot(struct Slot* slot) {
  if (slot->kind != kAnonymous || slot->read_only) {
    return;
  }
  size_t pages = pick(slot_pages) + 1;
  char* at = mremap(slot->at, slot->pages * kPage, pages * kPage, 0);
  VICTIM_CHECK(at == slot->at, "mremap in place");
  for (size_t page = slot->pages; page < pages; page++) {
    set_tag(slot, page, kZero);
  }
  slot->pages = pages;
}

static void protect_slot(struct Slot* slot) {
  slot->read_only = !slot->read_only;
  int protection = slot->read_only ? PROT_READ : PROT_READ | PROT_WRITE;
  VICTIM_CHECK(mprotect(slot->at, slot->pages * kPage, protection) == 0, "mprotect");
}

static void check_in_child(void) {
  pid_t child = fork();
  VICTIM_CHECK(child >= 0, "fork");
  if (child == 0) {
    check_all();
    _exit(0);
  }
  int status = 0;
  VICTIM_CHECK(waitpid(child, &status, 0) == child && status == 0, "the child ended with %#x",
               status);
}

static void step(void) {
  int number = (int)pick(kSlots);
  struct Slot* slot = &slots[number];
  size_t choice = pick(100);
  if (slot->kind == kUnmapped) {
    map_slot(number, kAnonymous + pick(kKinds - kAnonymous));
  } else if (choice < 70) {
    write_some(slot);
  } else if (choice < 82) {
    discard_some(slot);
  } else if (choice < 86) {
    unmap_slot(number);
  } else if (choice < 91) {
    move_slot(number, (int)pick(kSlots));
  } else if (choice < 96) {
    resize_slot(slot);
  } else {
    protect_slot(slot);
  }
}

static void make_file(void) {
  char path[PATH_MAX];
  victim_path(path, sizeof path, "mapped");
  file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  static char page[kPage];
  for (size_t number = 0; number < kFilePages; number++) {
    for (int word = 0; word < kWords; word++) {
      uint64_t value = file_word(number, word);
      memcpy(page + offsets[word], &value, 8);
    }
    VICTIM_CHECK(write(file, page, kPage) == kPage, "write");
  }
  close(file);
  file = open(path, O_RDONLY | O_CLOEXEC);
}

int main(int argc, char** argv) {
  victim_start(argc, argv);
  if (argc > 2) {
    slot_pages = strtoul(argv[2], NULL, 10);
    slot_pages = slot_pages < 1 ? 1 : slot_pages > kMaxPages ? kMaxPages : slot_pages;
  }
  make_file();
  size_t bytes = (size_t)kSlots * kMaxPages * kPage;
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  arena = mmap(NULL, bytes, PROT_NONE, flags, -1, 0);
  aliases = mmap(NULL, bytes, PROT_NONE, flags, -1, 0);
  VICTIM_CHECK(arena != MAP_FAILED && aliases != MAP_FAILED, "mmap");
  victim_ready();
  for (uint64_t round = 0;; round++) {
    for (int i = 0; i < 16; i++) {
      step();
    }
    for (int i = 0; i < 64; i++) {
      int number = (int)pick(kSlots);
      if (slots[number].kind != kUnmapped) {
        check_page(number, pick(slots[number].pages));
      }
    }
    if (round % 64 == 0) {
      check_all();
    }
    if (round % 512 == 511) {
      check_in_child();
    }
    victim_round();
    victim_pace();
  }
}
