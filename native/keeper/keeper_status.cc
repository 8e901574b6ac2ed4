#include "keeper/keeper_status.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <optional>
#include <vector>

#include "core/base/page.h"
#include "core/base/procfs.h"

namespace replpage {
namespace {

// `text` as a JSON string with its quotes.
std::string quoted(const std::string& text) {
  std::string json = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      json += '\\';
      json += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(c));
      json += escape;
    } else {
      json += c;
    }
  }
  return json + "\"";
}

// All processes' resident bytes but the caller's own, from /proc/PID/statm.
uint64_t resident_of_others() {
  uint64_t pages = 0;
  for (const int pid : numeric_entries("/proc").value_or(std::vector<int>{})) {
    const auto statm =
        pid == ::getpid() ? std::nullopt : read_proc("/proc/" + std::to_string(pid) + "/statm");
    if (!statm) continue;
    const size_t blank = statm->find(' ');
    if (blank != std::string::npos) pages += std::strtoull(statm->c_str() + blank, nullptr, 10);
  }
  return pages * kPageSize;
}

}  // namespace

std::string to_json(const KeeperStatus& status) {
  std::string json;
  const auto put = [&json](const char* key, const std::string& value) {
    json += json.empty() ? "{\"" : ",\"";
    json += key;
    json += "\":" + value;
  };
  const auto number = [&put](const char* key, auto value) { put(key, std::to_string(value)); };
  put("state", quoted(status.state));
  put("name", quoted(status.name));
  number("pid", status.pid);
  number("hostPid", status.host_pid);
  number("epoch", status.epoch);
  number("generation", status.generation);
  number("lazyPages", status.faults.passing_left);
  number("coldPages", status.cold_pages);
  number("filledPages", status.faults.pages_filled);
  number("damagedPages", status.faults.pages_damaged);
  number("waitingFaults", status.faults.waiting);
  number("waitingUs", status.faults.waiting_us);
  number("refillUs", status.faults.drained_us);
  put("storeTrouble", quoted(status.faults.trouble));
  number("residentBytes", resident_of_others());
  put("exited", status.exited ? "true" : "false");
  number("status", status.status);
  put("reason", quoted(status.reason));
  return json + "}";
}

}  // namespace replpage
