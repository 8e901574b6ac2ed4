// The layout and the flags of mappings, as /proc/self/smaps tells them: protection, sharing, huge
// page and other advice, locks, protection keys, PROT_NONE guards, the vdso's place.
#include <sys/auxv.h>
#include <sys/prctl.h>

#include "snapshot.h"

enum { kBytes = 16 * kPage, kRegions = 16 };
static char* regions[kRegions];
static int count;

static char* region(int protection, int flags) {
  // A hole on both sides, so that the kernel merges nothing.
  char* around = mmap(NULL, 3 * kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  VICTIM_CHECK(around != MAP_FAILED, "mmap");
  munmap(around, 3 * kBytes);
  char* at = mmap(around + kBytes, kBytes, protection, flags | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  VICTIM_CHECK(at != MAP_FAILED, "mmap");
  if (protection & PROT_WRITE) {
    memset(at, 0x5a, kBytes / 2);
  }
  regions[count++] = at;
  return at;
}

// Flags that say how the mapping is to behave; those that tracking adds are left out.
static bool is_kept(const char* flag) {
  static const char kept[] =
      "rd wr ex sh mr mw me ms gd lo sr rr dc de nr hg nh mg dd wf io pf sl ht sf ";
  return strstr(kept, flag) != NULL;
}

static void add_flags(struct Snapshot* snapshot, char* line) {
  for (char* flag = strtok(line, " \n"); flag != NULL; flag = strtok(NULL, " \n")) {
    if (strlen(flag) == 2 && is_kept(flag)) {
      snapshot_add(snapshot, " %s", flag);
    }
  }
  snapshot_add(snapshot, "\n");
}

static void add_smaps(struct Snapshot* snapshot) {
  FILE* smaps = fopen("/proc/self/smaps", "re");
  VICTIM_CHECK(smaps != NULL, "/proc/self/smaps");
  char line[PATH_MAX + 128];
  char head[PATH_MAX + 128] = "";
  bool wanted = false;
  while (fgets(line, sizeof line, smaps) != NULL) {
    unsigned long start;
    unsigned long end;
    char permissions[8];
    unsigned long pages;
    if (sscanf(line, "%lx-%lx %7s", &start, &end, permissions) == 3) {
      snprintf(head, sizeof head, "%lx-%lx %s", start, end, permissions);
      wanted = strstr(line, "[vdso]") != NULL;
      for (int i = 0; i < count; i++) {
        wanted |= (unsigned long)regions[i] >= start && (unsigned long)regions[i] < end;
      }
    } else if (wanted && strncmp(line, "VmFlags:", 8) == 0) {
      snapshot_add(snapshot, "%s:", head);
      add_flags(snapshot, line + 8);
    } else if (wanted && sscanf(line, "ProtectionKey: %lu", &pages) == 1) {
      snapshot_add(snapshot, "%s: key %lu\n", head, pages);
    } else if (wanted && sscanf(line, "Locked: %lu", &pages) == 1 && pages != 0) {
      snapshot_add(snapshot, "%s: locked\n", head);
    }
  }
  fclose(smaps);
}

static void take(struct Snapshot* snapshot) {
  static int round;
  // smaps is slow; most rounds only look at memory.
  static char kept[32768];
  if (round++ % 16 == 0) {
    struct Snapshot* fresh = calloc(1, sizeof *fresh);
    add_smaps(fresh);
    VICTIM_CHECK(fresh->used < sizeof kept, "too many mappings");
    // Read in parts, with flags in it that are not the program's (soft-dirty, userfaultfd): what a
    // promotion came between is torn, as what mmap(2) of another thread comes between.
    if (strcmp(fresh->text, kept) != 0) {
      memset(fresh, 0, sizeof *fresh);
      add_smaps(fresh);
    }
    memcpy(kept, fresh->text, fresh->used + 1);
    free(fresh);
  }
  snapshot_add(snapshot, "%s", kept);
  snapshot_add(snapshot, "vdso %lx\n", getauxval(AT_SYSINFO_EHDR));
  snapshot_add(snapshot, "vdso starts with %.3s\n", (char*)getauxval(AT_SYSINFO_EHDR) + 1);
  for (int i = 0; i < count; i++) {
    unsigned char resident[kBytes / kPage];
    snapshot_add(snapshot, "region %d mapped: %d\n", i, mincore(regions[i], kBytes, resident));
  }
  for (int i = 3; i < count; i++) {  // the first three cannot be read
    snapshot_add(snapshot, "region %d: %x %x\n", i, (unsigned char)regions[i][kPage],
                 (unsigned char)regions[i][kBytes - 1]);
  }
}

static void set_up(void) {
  region(PROT_NONE, MAP_PRIVATE);
  region(PROT_NONE, MAP_PRIVATE | MAP_NORESERVE);
  char* guarded = region(PROT_READ | PROT_WRITE, MAP_PRIVATE);
  mprotect(guarded, kBytes, PROT_NONE);  // a guard with pages behind it
  region(PROT_READ, MAP_PRIVATE);
  region(PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE);
  region(PROT_READ | PROT_WRITE, MAP_SHARED);
  char* read_only = region(PROT_READ | PROT_WRITE, MAP_PRIVATE);
  mprotect(read_only, kBytes, PROT_READ);
  madvise(region(PROT_READ | PROT_WRITE, MAP_PRIVATE), kBytes, MADV_HUGEPAGE);
  madvise(region(PROT_READ | PROT_WRITE, MAP_PRIVATE), kBytes, MADV_NOHUGEPAGE);
  madvise(region(PROT_READ | PROT_WRITE, MAP_PRIVATE), kBytes, MADV_DONTFORK);
  madvise(region(PROT_READ | PROT_WRITE, MAP_PRIVATE), kBytes, MADV_DONTDUMP);
  madvise(region(PROT_READ | PROT_WRITE, MAP_PRIVATE), kBytes, MADV_WIPEONFORK);
  madvise(region(PROT_READ | PROT_WRITE, MAP_PRIVATE), kBytes, MADV_SEQUENTIAL);
  mlock(region(PROT_READ | PROT_WRITE, MAP_PRIVATE), kBytes);
  syscall(SYS_mlock2, region(PROT_READ | PROT_WRITE, MAP_PRIVATE), kBytes, 1);
  int key = pkey_alloc(0, 0);
  if (key >= 0) {
    pkey_mprotect(region(PROT_READ | PROT_WRITE, MAP_PRIVATE), kBytes, PROT_READ | PROT_WRITE, key);
    pkey_set(key, PKEY_DISABLE_WRITE);
  }
}

int main(int argc, char** argv) {
  victim_start(argc, argv);
  set_up();
  snapshot_hold(take);
}
