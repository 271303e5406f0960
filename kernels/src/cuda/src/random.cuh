// The counter-based generator of `random.rs`: Philox4x32-10 and the domains mixed into its key.

#define SWL_DOMAIN_ANCHOR 0x616E6368u
#define SWL_DOMAIN_SIGNS 0x7369676Eu
#define SWL_DOMAIN_ROUNDING 0x726F756Eu

struct Words {
    u32 a, b, c, d;
};

struct Key {
    u32 low, high;
};

__device__ inline Key random_key(u64 seed, u32 domain) {
    return Key{(u32)seed, (u32)(seed >> 32) + domain};
}

__device__ inline Words philox(Words counter, Key key) {
    for (int round = 0; round < 10; ++round) {
        u64 left = (u64)counter.a * 0xD2511F53u;
        u64 right = (u64)counter.c * 0xCD9E8D57u;
        counter = Words{(u32)(right >> 32) ^ counter.b ^ key.low, (u32)right,
                        (u32)(left >> 32) ^ counter.d ^ key.high, (u32)left};
        key.low += 0x9E3779B9u;
        key.high += 0xBB67AE85u;
    }
    return counter;
}

__device__ inline u32 word_of(Words words, int index) {
    return index == 0 ? words.a : index == 1 ? words.b : index == 2 ? words.c : words.d;
}
