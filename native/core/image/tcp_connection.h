// An established TCP connection, taken from one socket and given to another with TCP_REPAIR
// (tcp(7)): the other side notices nothing, where the address moves along.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "core/base/archive.h"
#include "core/base/unique_fd.h"

namespace replpage {

// All that the two ends have agreed upon, and what is on its way.
struct TcpConnection {
  Bytes local_address, peer_address;  // sockaddr
  // Of the next byte: to be written by the program, to come from the other side.
  uint32_t send_sequence = 0, receive_sequence = 0;
  Bytes send_queue;           // not acknowledged by the other side
  uint32_t unsent_bytes = 0;  // at its end, that were not sent either
  Bytes receive_queue;        // not read by the program
  uint16_t segment_bytes_max = 0;
  bool window_scaled = false;  // send_scale and receive_scale were agreed upon
  uint8_t send_scale = 0, receive_scale = 0;
  bool selective = false;  // selective acknowledgements
  bool timestamps = false;
  uint32_t timestamp = 0;       // ours, of now
  bool address_reused = false;  // SO_REUSEADDR, which repair mode forgets
  // struct tcp_repair_window.
  uint32_t window_update_sequence = 0, send_window = 0, window_max = 0;
  uint32_t receive_window = 0, receive_update_sequence = 0;

  template <class A>
  void visit(A& a) {
    a(local_address, peer_address, send_sequence, receive_sequence, send_queue, unsent_bytes,
      receive_queue, segment_bytes_max, window_scaled, send_scale, receive_scale, selective,
      timestamps, timestamp, window_update_sequence, send_window, window_max, receive_window,
      receive_update_sequence, address_reused);
  }
};

// Reads it from a socket of whatever process (pidfd_getfd), which needs CAP_NET_ADMIN. Packets must
// not pass from then on (TrafficDrop), nor the program run: what comes later is in no image. The
// socket is left as it was. nullopt: it is connecting, or one side has said that it sends no more.
// Throws SysError: EMSGSIZE where its queues hold more than `bytes_max`, EBUSY where they changed.
std::optional<TcpConnection> take_connection(int socket, size_t bytes_max);

// A socket with the connection, in repair mode: it answers and acknowledges, and sends nothing by
// itself. In the network namespace of the calling thread, which must have the local address. Throws
// SysError: EADDRNOTAVAIL, EPERM.
// `prepare` sets what must be set before an address is bound.
UniqueFd make_connection(const TcpConnection& connection,
                         const std::function<void(int socket)>& prepare = {});

// What make_connection() made lives on, and sends what had not been sent. Call it when packets pass
// again, since the kernel asks the other side at once how far it is. Throws SysError.
void go_live(int socket, const TcpConnection& connection);

// Makes the connection one that nobody is told of when it is closed. Its program cannot use it any
// more: it must be about to end.
void fall_silent(int socket) noexcept;

}  // namespace replpage
