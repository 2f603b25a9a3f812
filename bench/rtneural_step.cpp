// The time of one step of RTNeural's layers whose sizes the compiler knows, for bench/latency.py.
// Prints a line "cell/hidden nanoseconds" for each.
#include <RTNeural.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <vector>

constexpr int inputs = 4, steps = 1000, turns = 200;

template <template <typename, int, int> class Layer, int hidden>
void measure(const char *name, int gates)
{
    using Network = RTNeural::ModelT<float, inputs, hidden, Layer<float, inputs, hidden>>;
    auto network = std::make_unique<Network>();
    std::mt19937 random(0);
    const float bound = 1.0f / std::sqrt(float(hidden));
    std::uniform_real_distribution<float> uniform(-bound, bound);
    const auto weights = [&](int rows) {
        std::vector<std::vector<float>> matrix(rows, std::vector<float>(gates * hidden));
        for (auto &row : matrix)
            for (auto &value : row)
                value = uniform(random);
        return matrix;
    };
    auto &layer = network->template get<0>();
    layer.setWVals(weights(inputs));
    layer.setUVals(weights(hidden));
    network->reset();
    std::vector<float> x(inputs * steps);
    for (auto &value : x)
        value = uniform(random);
    double best = 1e9;
    volatile float sink = 0.0f;
    for (int turn = 0; turn < turns; ++turn) {
        const auto began = std::chrono::steady_clock::now();
        for (int t = 0; t < steps; ++t)
            network->forward(&x[inputs * t]);
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
        sink = network->getOutputs()[0];
        best = std::min(best, took.count());
    }
    (void)sink;
    std::printf("%s/%d %.1f\n", name, hidden, best / steps * 1e9);
}

template <typename T, int I, int H> using Lstm = RTNeural::LSTMLayerT<T, I, H>;
template <typename T, int I, int H> using Gru = RTNeural::GRULayerT<T, I, H>;

int main()
{
    measure<Lstm, 16>("lstm", 4);
    measure<Lstm, 32>("lstm", 4);
    measure<Lstm, 64>("lstm", 4);
    measure<Lstm, 128>("lstm", 4);
    // Its GRU resets after the product, as Keras does by default.
    measure<Gru, 16>("gru_reset_after", 3);
    measure<Gru, 32>("gru_reset_after", 3);
    measure<Gru, 64>("gru_reset_after", 3);
    measure<Gru, 128>("gru_reset_after", 3);
    return 0;
}
