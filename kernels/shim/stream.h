// Streams: the tasks of one run in order, each at once or not before a wait, as a coin falls. A host that reads before
// it waits, or lets two streams meet without an event, sooner or later finds old bytes.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>

namespace shim {

// Falls the same way in every process with the same seed.
class Coin {
  public:
    explicit Coin(uint64_t seed) : state(seed) {}

    bool flip() {
        // Knuth's linear congruential generator (MMIX).
        state = state * 6364136223846793005u + 1442695040888963407u;
        return state >> 63;
    }

  private:
    uint64_t state;
};

class Stream {
  public:
    explicit Stream(Coin &coin) : coin(coin) {}
    void ask(std::function<void()> task) {
        waiting.push_back(std::move(task));
        ++asked;
        if (coin.flip()) {
            run();
        }
    }

    void run_to(size_t position) {
        while (done < position) {
            std::function<void()> task = std::move(waiting.front());
            waiting.pop_front();
            task();
            ++done;
        }
    }

    void run() { run_to(asked); }

    bool is_past(size_t position) const { return done >= position; }

    // The position behind all tasks ever asked.
    size_t end() const { return asked; }

  private:
    Coin &coin;
    std::deque<std::function<void()>> waiting;
    // Tasks ever asked of this stream, and how many of them are done.
    size_t asked = 0, done = 0;
};

// A place in a stream; none before it was recorded.
struct Event {
    std::shared_ptr<Stream> stream;
    size_t position = 0;

    bool reached() const { return !stream || stream->is_past(position); }

    void reach() const {
        if (stream) {
            stream->run_to(position);
        }
    }
};

} // namespace shim
