package compat

import com.squareup.moshi.JsonDataException
import java.util.Base64
import okhttp3.OkHttpClient
import org.openapitools.client.apis.CallbacksApi
import org.openapitools.client.apis.OperationsApi
import org.openapitools.client.apis.ReadsApi
import org.openapitools.client.infrastructure.ClientError
import org.openapitools.client.infrastructure.ClientException
import org.openapitools.client.infrastructure.Serializer
import org.openapitools.client.models.CallbackReply
import org.openapitools.client.models.MembershipPair
import org.openapitools.client.models.MembershipQuery
import org.openapitools.client.models.Problem
import org.openapitools.client.models.SetGroupMemberInfo

// What a backend in Kotlin writes against the client of openapi-generator: a line for each check, "ok" or
// what was found instead.

const val GROUP = "a/b c"

fun check(name: String, body: () -> Unit) {
    val result = runCatching(body).exceptionOrNull()?.toString()?.replace('\n', ' ') ?: "ok"
    println("$name $result")
}

fun equal(found: Any?, expected: Any?) {
    check(found == expected) { "expected $expected, found $found" }
}

fun http(authorization: String) =
    OkHttpClient.Builder()
        .addInterceptor { it.proceed(it.request().newBuilder().header("Authorization", authorization).build()) }
        .build()

fun basic(password: String) = "Basic " + Base64.getEncoder().encodeToString("openim:$password".toByteArray())

inline fun <reified T> failure(body: () -> Unit): Pair<Int, T> {
    try {
        body()
    } catch (error: ClientException) {
        val text = (error.response as ClientError<*>).body as String
        return Pair(error.statusCode, Serializer.moshi.adapter(T::class.java).fromJson(text)!!)
    }
    error("no error")
}

fun main(given: Array<String>) {
    val (url, password, token) = given
    val reads = ReadsApi(url, http("Bearer $token"))
    val change = SetGroupMemberInfo(
        callbackCommand = SetGroupMemberInfo.CallbackCommand.callbackAfterSetGroupMemberInfoCommand,
        groupID = GROUP,
        userID = "x+y",
        nickName = "Ann",
    )

    check("callback") {
        val openim = CallbacksApi(url, http(basic(password)))
        equal(openim.callbackAfterSetGroupMemberInfo(change).actionCode, 0)
    }
    check("refused") {
        val stranger = CallbacksApi(url, http(basic("wrong")))
        val (status, reply) = failure<CallbackReply> { stranger.callbackAfterSetGroupMemberInfo(change) }
        equal(Pair(status, reply.errCode), Pair(401, 5111))
    }
    check("ids") {
        for (user in listOf("x+y", "50%")) equal(reads.getMember(GROUP, user).userID, user)
        val ann = reads.getMember(GROUP, "x+y")
        equal(listOf(ann.nickName, ann.displayFaceURL, ann.joinSource), listOf("Ann", null, null))
    }
    check("unchanged") {
        val found = reads.getMemberWithHttpInfo(GROUP, "x+y", null)
        val etag = found.headers.entries.first { it.key.equals("ETag", ignoreCase = true) }.value.first()
        equal(reads.getMemberWithHttpInfo(GROUP, "x+y", etag).statusCode, 304)
    }
    check("problem") {
        val (status, problem) = failure<Problem> { reads.getGroup("none") }
        equal(Pair(status, problem.code), Pair(404, "group_unknown"))
    }
    check("pages") {
        val users = mutableListOf<String>()
        var cursor: String? = null
        do {
            val page = reads.listMembers(GROUP, limit = 1, cursor = cursor)
            equal(page.groupID, GROUP)
            users += page.members.map { it.userID }
            cursor = page.nextCursor
        } while (cursor != null)
        equal(users, listOf("..", "50%", "x+y"))
    }
    check("filter") {
        equal(reads.listMembers(GROUP, userID = listOf("x+y", "50%")).members.size, 2)
        equal(reads.listMembers(GROUP, state = ReadsApi.StateListMembers.all).members.size, 4)
    }
    check("query") {
        val pairs = listOf("..", "stranger").map { MembershipPair(GROUP, it) }
        val found = reads.queryMemberships(MembershipQuery(pairs)).memberships
        equal(found.map { it.isMember }, listOf(true, false))
        equal(listOf(found[0].member?.userID, found[1].member), listOf("..", null))
    }
    check("groups") {
        val page = reads.listGroupsOfUser("50%")
        equal(Pair(page.userID, page.groups.map { it.groupID }), Pair("50%", listOf(GROUP)))
    }
    check("drift") { equal(OperationsApi(url, http("Bearer $token")).drift().lastRun, null) }
    val dots = runCatching { reads.listGroupsOfUser("..").userID }
    val failed = dots.exceptionOrNull()
    println("dots " + when {
        failed is JsonDataException -> "refused"
        failed is ClientException && failed.statusCode == 400 -> "empty"
        dots.isFailure -> dots.toString()
        dots.getOrNull() == ".." -> "sent"
        else -> "other"
    })
}
