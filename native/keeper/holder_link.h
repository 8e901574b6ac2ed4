// What holder and keeper say to each other over their socket pair. The keeper cannot see pids of
// the daemon's namespace: the holder, outside, reads them off the credentials of a packet
// (unix(7)).
#pragma once

#include <sys/types.h>

#include <string>

namespace replpage {

// Largest text of an outcome.
inline constexpr size_t kOutcomeBytesMax = 4000;

// Keeper's side. Tells whether the start succeeded ("" ) or why not. Never throws.
void report_start(int link, const std::string& failure);
// The pid by which the daemon knows the keeper namespace's `pid`; 0 when the holder does not
// answer.
pid_t host_pid_of(int link, pid_t pid);

// Holder's side. Must be called before the keeper sends anything. Throws SysError.
void expect_credentials(int link);
// Waits for report_start. False: the keeper ended without a word, or took too long.
bool wait_start(int link, int keeper_pidfd, std::string& failure);
// Answers one host_pid_of. False: the other end is gone.
bool answer_host_pid(int link);

}  // namespace replpage
