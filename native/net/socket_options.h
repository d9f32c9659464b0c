// Sets a new UDP socket up before it is bound.
#pragma once

#include "base/socket_address.h"
#include "net/udp_socket.h"

namespace securefabric::net {

// Applies what the kernel knows of `options` and tells what it granted; a refusal is no error.
SocketGrants apply_socket_options(int fd, base::AddressFamily family,
                                  const UdpSocketOptions& options);

}  // namespace securefabric::net
