// replpage-pager: writes a group's cold pages to the page store. Started by the daemon with one
// descriptor, a channel.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "pager/pager_server.h"

int main(int argc, char** argv) {
  if (argc != 3 || std::strcmp(argv[1], "--channel") != 0) {
    std::fputs("replpage-pager is started by replpage daemon\n", stderr);
    return 2;
  }
  return replpage::run_pager(std::atoi(argv[2]));
}
