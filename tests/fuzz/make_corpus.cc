// Writes the seed corpora: make_corpus <tests/fuzz/corpus>. The same files every time; inputs that
// once found something lie beside them under names of their own.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

#include "wire/frame_samples.h"
#include "wire/header.h"

namespace {

using securefabric::base::Random;
using securefabric::wire::ByteVector;
namespace base = securefabric::base;
namespace wire = securefabric::wire;

class Corpus {
 public:
  explicit Corpus(std::filesystem::path folder) : folder_(std::move(folder)) {
    std::filesystem::create_directories(folder_);
  }
  void add(const std::string& name, const ByteVector& bytes) const {
    std::ofstream file(folder_ / name, std::ios::binary);
    file.write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
  }

 private:
  std::filesystem::path folder_;  // one per fuzz target
};

void write_headers(const Corpus& corpus) {
  ByteVector datagram(wire::kHeaderBytes + 16, 0x5A);
  wire::encode_header({base::PathId{0x0102}, base::Spi{0x03040506}, 7}, datagram);
  corpus.add("valid", datagram);
  corpus.add("too_short", {datagram.begin(), datagram.end() - 1});
  corpus.add("empty", {});
  ByteVector damaged = datagram;
  damaged[0] = 0x21;
  corpus.add("other_version", damaged);
  damaged = datagram;
  damaged[1] = 2;
  corpus.add("flags", damaged);
}

// Packets of sizes around those at which a kernel changes what it does.
void write_packets(const Corpus& corpus) {
  for (uint8_t suite = 0; suite < 3; ++suite) {
    for (const size_t size : {0u, 1u, 17u, 128u, 161u, 300u, 1'424u}) {
      Random random(size + suite);
      ByteVector input(9 + size);
      random.fill(input);
      input[0] = suite;
      input[1] = 16;
      corpus.add("suite" + std::to_string(suite) + "_" + std::to_string(size), input);
    }
  }
}

void write_frames(const Corpus& corpus) {
  ByteVector all;
  for (const wire::Sample& sample : wire::samples()) {
    const ByteVector bytes = wire::encoded(sample.frame);
    corpus.add(sample.name, bytes);
    corpus.add(std::string(sample.name) + "_cut", {bytes.begin(), bytes.end() - 1});
    all.insert(all.end(), bytes.begin(), bytes.end());
  }
  corpus.add("all", all);
  all.resize(all.size() + 64);
  corpus.add("all_padded", all);
  for (uint64_t seed = 0; seed < 24; ++seed) {
    Random random(seed);
    ByteVector packet;
    for (uint64_t n = 1 + random.below(6); n > 0; --n) {
      wire::append(wire::random_frame(random), packet);
    }
    if (seed % 2 == 1) packet[random.below(packet.size())] ^= 0x41;
    corpus.add("packet_" + std::to_string(seed), packet);
  }
}

// Programs for endpoint_fuzz.cc: random bytes, all of which mean something.
void write_attacks(const Corpus& corpus) {
  for (uint64_t seed = 0; seed < 64; ++seed) {
    Random random(seed);
    ByteVector program(64 + random.below(400));
    random.fill(program);
    program[0] = static_cast<uint8_t>(seed);  // the options
    corpus.add("attack_" + std::to_string(seed), program);
  }
  corpus.add("empty", {});
}

void write_job_keys(const Corpus& corpus) {
  const std::string digits(64, 'a');
  const std::string valid =
      "securefabric-job-key v1\nid: 0123456789abcdef\nsuite: aes-256-gcm\nkey: " + digits + "\n";
  const auto add = [&](const std::string& name, const std::string& text) {
    corpus.add(name, ByteVector(text.begin(), text.end()));
  };
  add("valid", valid);
  add("comments", "# made today\n\n" + valid + "\n# end\n");
  add("chacha", "securefabric-job-key v1\nid: 0123456789abcdef\nsuite: chacha20-poly1305\nkey: " +
                    digits + "\n");
  add("short_key", valid.substr(0, valid.size() - 30) + "\n");
  add("upper_case", valid.substr(0, valid.size() - 3) + "AA\n");
  add("carriage_returns", "securefabric-job-key v1\r\nid: 0123456789abcdef\r\n");
  add("other_version", "securefabric-job-key v2\n");
  add("unknown_suite", "securefabric-job-key v1\nid: 0123456789abcdef\nsuite: none\n");
  add("trailing", valid + "key: again\n");
  add("cut", valid.substr(0, 40));
  add("zeros", std::string(200, '\0'));
  add("empty", "");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
    return 2;
  }
  const std::filesystem::path root = argv[1];
  write_headers(Corpus(root / "header_fuzz"));
  write_frames(Corpus(root / "frames_fuzz"));
  write_attacks(Corpus(root / "endpoint_fuzz"));
  write_job_keys(Corpus(root / "job_key_fuzz"));
  write_packets(Corpus(root / "aead_fuzz"));
  return 0;
}
