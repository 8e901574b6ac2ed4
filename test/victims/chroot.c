// A process whose root and working directory are its own. With `deleted` the working directory has
// been removed, which no path leads to any more.
#include <sys/stat.h>

#include "victim.h"

int main(int argc, char** argv) {
  victim_start(argc, argv);
  char inside[PATH_MAX];
  victim_path(inside, sizeof inside, "inside");
  mkdir(inside, 0755);
  struct stat root;
  struct stat cwd;
  bool deleted = argc > 2 && strcmp(argv[2], "deleted") == 0;
  if (deleted) {
    VICTIM_CHECK(chdir(inside) == 0 && rmdir(inside) == 0, "removing the working directory");
  } else {
    VICTIM_CHECK(chroot(victim_directory) == 0 && chdir("/inside") == 0, "chroot");
  }
  VICTIM_CHECK(stat("/", &root) == 0 && stat(".", &cwd) == 0, "stat");
  victim_ready();
  for (;;) {
    struct stat now;
    VICTIM_CHECK(stat("/", &now) == 0 && now.st_ino == root.st_ino && now.st_dev == root.st_dev,
                 "/ is another directory");
    VICTIM_CHECK(stat(".", &now) == 0 && now.st_ino == cwd.st_ino && now.st_dev == cwd.st_dev,
                 "the working directory is another one");
    char path[PATH_MAX];
    if (deleted) {
      VICTIM_CHECK(getcwd(path, sizeof path) == NULL && errno == ENOENT, "getcwd found %s", path);
    } else {
      VICTIM_CHECK(getcwd(path, sizeof path) != NULL && strcmp(path, "/inside") == 0, "getcwd: %s",
                   path);
      VICTIM_CHECK(access("/inside", X_OK) == 0, "/inside");
      VICTIM_CHECK(access("/usr", F_OK) != 0, "/usr can be seen");
    }
    victim_round();
    victim_pace();
  }
}
