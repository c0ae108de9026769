//! Who has which place and which blocks of the cache: texts that begin alike share blocks; where there are too few, texts that
//! have ended lose theirs, and then the newest ones begin anew later.

use super::Engine;
use super::parts::Read;
use super::text::Text;
use crate::network::Network;

impl<N: Network + ?Sized> Engine<'_, N> {
    /// Gives places of a group to texts that wait, in the order in which they came.
    pub(super) fn fill(&mut self, group: usize) {
        let most = (group..self.options.batch).step_by(self.groups).len();
        let is_running =
            |text: &Option<Text>| text.as_ref().is_some_and(|text| text.end().is_none());
        let running = self
            .places(group)
            .filter(|&place| is_running(&self.texts[place]));
        for _ in running.count()..most {
            let Some(text) = self.waiting.front() else {
                return;
            };
            if !self.is_admitted(text) {
                return;
            }
            let mut text = self
                .waiting
                .pop_front()
                .expect("the text that was looked at");
            let free = self
                .places(group)
                .filter(|&place| !is_running(&self.texts[place]));
            let place = free.min_by_key(|&place| (self.texts[place].is_some(), self.used[place]));
            let place = place.expect("a place for each text of the batch");
            // What it begins with stays of the text that ended.
            let cached = self.network.cache().lengths()[place];
            let before = self.texts[place].as_ref();
            let kept = before.map_or(0, |before| text.alike(before)).min(cached);
            self.network.truncate(place, kept);
            self.network.show(place, text.pictures());
            self.drafter.truncate(place, kept);
            text.take_over(kept);
            self.statistics.shared += kept;
            self.texts[place] = Some(text);
        }
    }

    /// Whether there is room for a text: for what is known of it and of the texts in the making, whether that is read already or
    /// not, and for a block more of each of them.
    fn is_admitted(&self, text: &Text) -> bool {
        let Some(blocks) = self.options.blocks else {
            return true;
        };
        let block = self.options.block_tokens;
        let cached = self.network.cache().lengths();
        let running = self.texts.iter().zip(cached).filter_map(|(text, &cached)| {
            let text = text.as_ref().filter(|text| text.end().is_none())?;
            Some(text.unread(cached).len().div_ceil(block))
        });
        let (running, unread) =
            running.fold((0, 0), |(count, sum), blocks| (count + 1, sum + blocks));
        let [held, _] = self.blocks();
        let needed = text.window().len().div_ceil(block);
        running == 0 || held + unread + needed + running < blocks
    }

    /// Gives texts of a group what others have read of the same beginning, in whole blocks, where that is more than they have
    /// themselves. Returns which texts wait for another one to read what they begin with.
    pub(super) fn share(&mut self, group: usize) -> Vec<bool> {
        let block = self.network.cache().block_tokens();
        let mut waits = vec![false; self.texts.len()];
        let number = |place: &usize| self.texts[*place].as_ref().map(|text| text.number);
        let mut places: Vec<usize> = (0..self.texts.len()).collect();
        places.sort_unstable_by_key(number);
        for place in places {
            let cached = self.network.cache().lengths();
            let own = cached[place];
            let Some(text) = self.texts[place].as_ref() else {
                continue;
            };
            if text.end().is_some() || (text.window().len() - 1) / block * block <= own {
                // It has as many whole blocks as it could get.
                continue;
            }
            // Those that are further, or as far and came before, so that no two wait for each other.
            let others = self.texts.iter().enumerate();
            let others = others.filter_map(|(other, of)| Some((other, of.as_ref()?)));
            let others = others.filter(|&(other, of)| {
                let is_ahead =
                    cached[other] > own || cached[other] == own && of.number < text.number;
                !waits[other] && is_ahead
            });
            let alike = others.map(|(other, of)| {
                let alike = text.alike(of);
                let alike = match of.end() {
                    None => alike,
                    // It reads no more.
                    Some(_) => alike.min(cached[other]),
                };
                let alike = alike / block * block;
                (alike, alike.min(cached[other]), other)
            });
            let longest = alike.max().filter(|(alike, ..)| *alike > own);
            let Some((alike, read, other)) = longest else {
                continue;
            };
            if read < alike {
                waits[place] = true;
            } else if place % self.groups == group {
                self.network.truncate(place, 0);
                self.network.fork(other, alike, place);
                self.used[other] = self.clock;
                let text = self.texts[place].as_mut().expect("the text that shares");
                text.take_over(alike - own);
                self.statistics.shared += alike - own;
            }
        }
        waits
    }

    /// What the texts of a group read in a step for which there are enough blocks, and the number of tokens that are wanted of
    /// the draft for each; `None` if there is nothing to read now.
    pub(super) fn reads_that_fit(
        &mut self,
        group: usize,
        waits: &[bool],
    ) -> Option<(Vec<Read>, usize)> {
        loop {
            let (reads, wanted) = self.reads(group, waits);
            if reads.is_empty() {
                return None;
            }
            let new = reads
                .iter()
                .map(|read| (read.place, read.tokens + read.most));
            let new: Vec<(usize, usize)> = new.collect();
            let fits = |engine: &Self| {
                let cache = engine.network.cache();
                let free = cache.free_blocks();
                free.is_none_or(|free| cache.needed(&new) <= free)
            };
            while !fits(self) && self.forget_oldest() {}
            if fits(self) {
                return Some((reads, wanted));
            }
            // Of texts of which no step is under way, the newest one begins anew later.
            let texts = self.texts.iter().enumerate().filter_map(|(place, text)| {
                let text = text.as_ref()?;
                let is_free = text.end().is_none() && self.is_idle(place % self.groups);
                is_free.then_some((text.number, place))
            });
            let mut texts: Vec<(usize, usize)> = texts.collect();
            texts.sort_unstable();
            match texts.pop() {
                Some((_, newest)) if !texts.is_empty() => self.preempt(newest),
                // Blocks come back with the steps under way.
                _ if self.is_waiting_for_steps() => return None,
                _ => unreachable!("a text of the whole context fits"),
            }
        }
    }

    /// Takes the blocks of the text that ended and was of use the longest ago; returns whether there was any.
    fn forget_oldest(&mut self) -> bool {
        let cached = self.network.cache().lengths();
        let ended = (0..self.texts.len()).filter(|&place| {
            let text = self.texts[place].as_ref();
            cached[place] > 0
                && self.is_idle(place % self.groups)
                && text.is_some_and(|text| text.end().is_some())
        });
        let Some(oldest) = ended.min_by_key(|&place| self.used[place]) else {
            return false;
        };
        self.clear(oldest);
        true
    }

    /// Takes a text's blocks; it waits for its turn, in front of those that came later.
    fn preempt(&mut self, place: usize) {
        let cached = self.network.cache().lengths()[place];
        let mut text = self.clear(place);
        self.statistics.preempted += usize::from(cached > 0);
        text.lose_cache();
        let later = self.waiting.iter();
        let before = later.take_while(|other| other.number < text.number).count();
        self.waiting.insert(before, text);
    }

    fn clear(&mut self, place: usize) -> Text {
        self.network.truncate(place, 0);
        self.drafter.truncate(place, 0);
        self.texts[place].take().expect("a text in its place")
    }
}
