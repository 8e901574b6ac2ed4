// What tests of descriptors do again and again: open, place, move to a replica, read.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "test/descriptor_fixture.h"

namespace replpage::testing {

// Throws SysError with errno.
void must(bool good, const char* what);

// Gives an open file the number the test wants.
void place(int fd, int number, int flags = 0);

// A directory of the test's own, removed at the end.
std::string scratch();

void write_file(const std::string& path, const std::string& text);

// What one read() gives, or "error " and why.
std::string read_some(int fd);

// The open file behind a descriptor. Throws SysError (ENOENT).
const OpenFileImage& file_of(const GroupImage& image, int fd, size_t table = 0);

// A process whose descriptors 3 and up are what `prepare` opens; 0, 1, 2 are /dev/null.
std::function<void()> clean(std::function<void()> prepare);

// How the replica gets its descriptors: handed over by the dying process, those that may be after a
// crash, or opened anew.
enum class How { kHandOver, kCrash, kRecreate };
inline constexpr How kEveryWay[] = {How::kHandOver, How::kCrash, How::kRecreate};

// Captures `primary`, restores into `replica`, ends `primary`.
Captured move_descriptors(CallProcess& primary, CallProcess& replica, How how,
                          const std::string& stream_path = "");

// What epoll_wait tells in the process: data of the ready watches.
std::vector<uint64_t> ready(CallProcess& process, int epoll);

}  // namespace replpage::testing
