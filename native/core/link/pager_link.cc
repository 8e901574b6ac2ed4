#include "core/link/pager_link.h"

#include <poll.h>
#include <strings.h>
#include <sys/random.h>

#include <algorithm>

#include "core/base/clock.h"
#include "core/base/sys_error.h"

namespace replpage {
namespace {

constexpr const char* kEnded = "the pager ended";

}  // namespace

uint64_t random_writer() {
  uint64_t writer = 0;
  if (::getrandom(&writer, sizeof writer, 0) != sizeof writer) {
    throw SysError::from_errno("getrandom");
  }
  return writer;
}

PagerLink::PagerLink(PagerOptions options) : options_(std::move(options)) {
  usage_.next_segment = options_.first_segment;
  writer_ = options_.writer != 0 ? options_.writer : random_writer();
  start();
}

void PagerLink::start() {
  sent_sources_.clear();
  try {
    process_.emplace(PagerProcess::start(options_.executable));
    configure();
    send_queued();
  } catch (const SysError& error) {
    lose(error.what());
  }
}

void PagerLink::start_when_due() {
  if (now_us() < next_start_us_) return;
  if (!process_) {
    start();
  } else if (!open_ && requests_.empty()) {
    configure();  // the store may be back
  }
}

void PagerLink::configure() {
  PagerConfigureMessage message{.store = options_.store,
                                .group = options_.group,
                                .group_id = options_.group_id,
                                .generation = options_.generation,
                                .writer = writer_,
                                .first_segment = usage_.next_segment,
                                .key = {},
                                .compress = options_.compress,
                                .bytes_max = options_.bytes_max,
                                .segment_bytes_max = options_.segment_bytes_max,
                                .groups = {},
                                .allow_memory_file_systems = options_.allow_memory_file_systems};
  if (options_.key) message.key.assign(options_.key->bytes().begin(), options_.key->bytes().end());
  if (options_.rights) {
    message.as_owner = true;
    message.uid = options_.rights->uid;
    message.gid = options_.rights->gid;
    message.groups.assign(options_.rights->groups.begin(), options_.rights->groups.end());
  }
  packets_.push_back({.type = PagerMessageType::kConfigure, .body = encode(message)});
  ::explicit_bzero(message.key.data(), message.key.size());
  requests_.push_back({.ticket = 0, .type = PagerMessageType::kConfigure, .since_us = now_us()});
}

void PagerLink::set_source(uint32_t source, UniqueFd descriptor) {
  forget_source(source);
  sources_[source] = std::move(descriptor);
}

void PagerLink::forget_source(uint32_t source) {
  if (sources_.erase(source) == 0) return;
  if (std::erase(sent_sources_, source) == 0) return;
  queue(PagerMessageType::kForgetSource, PagerSourceMessage{.source = source});
  send_queued();
}

bool PagerLink::ready() const {
  const auto batches = std::count_if(
      requests_.begin(), requests_.end(),
      [](const Request& request) { return request.type == PagerMessageType::kWrite; });
  return open_ && static_cast<size_t>(batches) < kBatchesMax;
}

std::optional<uint64_t> PagerLink::submit(uint64_t epoch, std::vector<PagerRun> runs) {
  if (!ready()) return std::nullopt;
  for (const PagerRun& run : runs) send_source(run.source);
  return ask(PagerMessageType::kWrite, PagerWriteMessage{.epoch = epoch, .runs = std::move(runs)});
}

std::optional<uint64_t> PagerLink::drop_segments(std::vector<uint32_t> segments) {
  if (!open_) return std::nullopt;
  return ask(PagerMessageType::kDrop, PagerDropMessage{.segments = std::move(segments)});
}

std::optional<uint64_t> PagerLink::remove_generation(uint64_t generation) {
  if (!open_) return std::nullopt;
  return ask(PagerMessageType::kRemove, PagerRemoveMessage{.generation = generation});
}

std::optional<uint64_t> PagerLink::checkpoint(Bytes manifest, uint32_t source, bool keep) {
  if (!open_) return std::nullopt;
  send_source(source);
  return ask(
      PagerMessageType::kCheckpoint,
      PagerCheckpointMessage{.manifest = std::move(manifest), .source = source, .keep = keep});
}

std::optional<uint64_t> PagerLink::ask_usage() {
  if (!open_) return std::nullopt;
  return ask(PagerMessageType::kUsage, PagerTicket{});
}

std::optional<uint64_t> PagerLink::probe(uint64_t nonce, PagerProbe step) {
  if (!open_) return std::nullopt;
  return ask(PagerMessageType::kProbe, PagerProbeMessage{.nonce = nonce, .step = step});
}

template <class T>
uint64_t PagerLink::ask(PagerMessageType type, T message) {
  message.ticket = ++last_ticket_;
  queue(type, std::move(message));
  requests_.push_back({.ticket = last_ticket_, .type = type, .since_us = now_us()});
  const uint64_t ticket = last_ticket_;
  send_queued();
  return ticket;
}

template <class T>
void PagerLink::queue(PagerMessageType type, T message, int source) {
  packets_.push_back({.type = type, .body = encode(message), .source = source});
}

void PagerLink::send_source(uint32_t source) {
  if (std::find(sent_sources_.begin(), sent_sources_.end(), source) != sent_sources_.end()) return;
  queue(PagerMessageType::kSource, PagerSourceMessage{.source = source}, static_cast<int>(source));
  sent_sources_.push_back(source);
}

// Whether a packet of any size is taken without waiting: the kernel says so only when at most a
// quarter of the room is used, and takes one packet more as long as not all of it is.
bool PagerLink::can_send() const {
  pollfd item{.fd = process_->fd(), .events = POLLOUT, .revents = 0};
  return ::poll(&item, 1, 0) > 0 && (item.revents & (POLLOUT | POLLERR | POLLHUP)) != 0;
}

void PagerLink::send_queued() {
  while (process_ && !packets_.empty() && can_send()) {
    Packet packet = std::move(packets_.front());
    packets_.pop_front();
    std::vector<int> descriptors;
    if (packet.source >= 0) {
      const auto source = sources_.find(static_cast<uint32_t>(packet.source));
      if (source == sources_.end()) continue;  // forgotten meanwhile
      descriptors.push_back(source->second.get());
    }
    try {
      process_->channel().send(on_wire(packet.type), packet.body, descriptors);
    } catch (const SysError& error) {
      lose(error.error() == EPIPE ? kEnded : error.what());
    }
    if (packet.type == PagerMessageType::kConfigure) {
      ::explicit_bzero(packet.body.data(), packet.body.size());
    }
  }
}

std::vector<PagerNews> PagerLink::poll() {
  start_when_due();
  send_queued();
  receive();
  return std::exchange(news_, {});
}

int PagerLink::fd() const { return process_ ? process_->fd() : -1; }

pid_t PagerLink::pid() const { return process_ ? process_->pid() : 0; }

uint64_t PagerLink::since_us() const {
  return requests_.empty() ? 0 : std::max<uint64_t>(1, now_us() - requests_.front().since_us);
}

void PagerLink::kill_pager(const std::string& reason) {
  if (process_) lose(reason);
}

void PagerLink::receive() {
  while (process_) {
    try {
      std::optional<ReceivedMessage> message = process_->channel().receive(0);
      if (message) {
        take(std::move(*message));
      } else if (process_->channel().closed()) {
        lose(kEnded);
      } else {
        return;
      }
    } catch (const std::exception& error) {
      lose(error.what());
    }
  }
}

void PagerLink::take(ReceivedMessage message) {
  switch (pager_type(message.type)) {
    case PagerMessageType::kOpened: {
      auto opened = decode<PagerDoneMessage>(message.body);
      if (!settle(0)) return;
      open_ = true;
      usage_ = opened.usage;
      if (message.descriptors.size() != 1) throw FormatError("the store comes with one directory");
      news_.emplace_back(
          PagerOpened{.usage = usage_,
                      .directory = std::make_shared<UniqueFd>(std::move(message.descriptors[0]))});
      return;
    }
    case PagerMessageType::kWritten: {
      auto written = decode<PagerWrittenMessage>(message.body);
      if (!settle(written.ticket)) return;
      usage_ = written.usage;
      delay_us_ = 0;
      news_.emplace_back(std::move(written));
      return;
    }
    case PagerMessageType::kDone: {
      auto done = decode<PagerDoneMessage>(message.body);
      if (!settle(done.ticket)) return;
      usage_ = done.usage;
      news_.emplace_back(done);
      return;
    }
    case PagerMessageType::kFailed: {
      auto failed = decode<PagerFailedMessage>(message.body);
      if (!settle(failed.ticket)) return;
      if (failed.ticket == 0) delay_next_start();
      news_.emplace_back(std::move(failed));
      return;
    }
    default:
      throw FormatError("the pager sent a message that is for it");
  }
}

// The answer belongs to a request; it is not under way any more.
bool PagerLink::settle(uint64_t ticket) {
  return std::erase_if(requests_, [&](const Request& r) { return r.ticket == ticket; }) != 0;
}

void PagerLink::delay_next_start() {
  delay_us_ = std::clamp(delay_us_ * 2, options_.restart_delay_us, options_.restart_delay_max_us);
  next_start_us_ = now_us() + delay_us_;
}

void PagerLink::lose(const std::string& reason) {
  process_.reset();
  open_ = false;
  packets_.clear();
  for (const Request& request : std::exchange(requests_, {})) {
    if (request.ticket == 0) continue;
    news_.emplace_back(PagerFailedMessage{
        .ticket = request.ticket, .kind = StoreFailure::kIo, .error = 0, .reason = reason});
  }
  delay_next_start();
  news_.emplace_back(PagerEnded{.reason = reason});
}

}  // namespace replpage
